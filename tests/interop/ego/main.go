// EGo's own code for attested TLS and attestation tokens, outside of an enclave.
//
// In an enclave its runtime makes the reports; here the socket $REPORTS does, which receives 64 bytes of report data
// and answers with a report.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"github.com/edgelesssys/ego/attestation"
	internal "github.com/edgelesssys/ego/internal/attestation"
)

func main() {
	log.SetFlags(0)
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2] == "open-enclave")
	case "token":
		token([]byte(os.Args[2]), os.Args[3])
	}
}

func report(data []byte) ([]byte, error) {
	stream, err := net.Dial("unix", os.Getenv("REPORTS"))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if _, err := stream.Write(append(data, make([]byte, 64-len(data))...)); err != nil {
		return nil, err
	}
	return io.ReadAll(stream)
}

// Serve attested TLS; the port goes to standard output.
func serve(openEnclave bool) {
	hash := internal.HashPublicKey
	if openEnclave {
		hash = internal.HashPublicKeyOE
	}
	config, err := internal.CreateAttestationServerTLSConfig(hash, report)
	check(err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for {
		stream, err := listener.Accept()
		check(err)
		go func() {
			defer stream.Close()
			_, _ = io.WriteString(stream, "hello from EGo\n")
		}()
	}
}

// Get a token of an attestation service, verify it, and print what it says.
func token(data []byte, url string) {
	hash := sha256.Sum256(data)
	found, err := report(hash[:])
	check(err)
	made, err := internal.CreateAzureAttestationToken(found, data, url)
	check(err)
	verified, err := attestation.VerifyAzureAttestationToken(made, url)
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(verified))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
