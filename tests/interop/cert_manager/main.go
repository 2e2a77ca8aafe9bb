// Signs a CertificateSigningRequest (JSON, standard input) as cert-manager's CA issuer does, with cert-manager's own
// functions, by the CA in the files ARGUMENT 1 (certificate) and 2 (key); prints the certificate.
package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"

	"github.com/cert-manager/cert-manager/pkg/util/pki"
	certificates "k8s.io/api/certificates/v1"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func main() {
	var request certificates.CertificateSigningRequest
	must(0, json.NewDecoder(os.Stdin).Decode(&request))
	authority := must(pki.DecodeX509CertificateBytes(must(os.ReadFile(os.Args[1]))))
	key := must(pki.DecodePrivateKeyBytes(must(os.ReadFile(os.Args[2]))))
	template := must(pki.CertificateTemplateFromCertificateSigningRequest(&request))
	bundle := must(pki.SignCSRTemplate([]*x509.Certificate{authority}, key, template))
	os.Stdout.Write(bundle.ChainPEM)
}
