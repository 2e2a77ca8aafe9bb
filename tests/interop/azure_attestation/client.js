// Calls an attestation service with Microsoft's client (@azure/attestation) and prints what it understood as JSON.
// Input on stdin: {url, token, quote, report, held, policy, key, certificate, other}; bytes in base64, keys in PEM.
"use strict";

const { AttestationAdministrationClient, AttestationClient } = require("@azure/attestation");

/** What the client says of an enclave: getters, which JSON does not see. */
function shown(result) {
  return {
    isDebuggable: result.isDebuggable,
    productId: result.productId,
    svn: result.svn,
    mrEnclave: result.mrEnclave,
    mrSigner: result.mrSigner,
    held: Buffer.from(result.enclaveHeldData || "").toString("base64"),
    runTimeClaims: result.runTimeClaims,
    sgxCollateral: result.sgxCollateral,
    signed: Boolean(result.policySigner),
    policyHash: Buffer.from(result.policyHash).toString("base64"),
  };
}

async function main(given) {
  const bytes = (name) => Buffer.from(given[name], "base64");
  // The service's clock is the tests'; this client's is the machine's.
  const validationOptions = {
    validateToken: true,
    validateIssuer: true,
    expectedIssuer: given.url,
    validateExpirationTime: false,
    validateNotBeforeTime: false,
  };
  const client = new AttestationClient(given.url, { validationOptions });
  const held = bytes("held");
  const sgx = await client.attestSgxEnclave(bytes("quote"), { runTimeData: held });
  const json = await client.attestSgxEnclave(bytes("quote"), { runTimeJson: held });
  const openEnclave = await client.attestOpenEnclave(bytes("report"), { runTimeData: held });
  const draft = await client.attestSgxEnclave(bytes("quote"), { draftPolicyForAttestation: given.policy });
  const refused = await client.attestSgxEnclave(bytes("quote"), { runTimeData: Buffer.from("other") }).catch((e) => e);
  const signers = await client.getAttestationSigners();
  const metadata = await client.getOpenIdMetadata();

  const credential = { getToken: async () => ({ token: given.token, expiresOnTimestamp: Date.now() + 3600000 }) };
  const administrator = new AttestationAdministrationClient(given.url, credential, { validationOptions });
  const keys = { privateKey: given.key, certificate: given.certificate };
  const set = await administrator.setPolicy("SgxEnclave", given.policy, keys);
  const policy = await administrator.getPolicy("SgxEnclave");
  const signed = await client.attestSgxEnclave(bytes("quote"));
  const added = await administrator.addPolicyManagementCertificate(given.other, given.key, given.certificate);
  const certificates = await administrator.getPolicyManagementCertificates();
  const removed = await administrator.removePolicyManagementCertificate(given.other, given.key, given.certificate);
  const reset = await administrator.resetPolicy("SgxEnclave", keys);
  return {
    sgx: shown(sgx.body),
    header: [sgx.token.algorithm, sgx.token.type, sgx.token.keyUrl],
    json: shown(json.body).runTimeClaims,
    openEnclave: shown(openEnclave.body),
    draft: draft.token.algorithm,
    refused: [refused.statusCode, refused.code],
    signers: signers.length,
    issuer: metadata.issuer,
    set: set.body.policyResolution,
    policy: policy.body,
    signed: shown(signed.body).signed,
    added: added.body.certificateResolution,
    certificates: certificates.body.length,
    removed: removed.body.certificateResolution,
    reset: reset.body.policyResolution,
  };
}

let text = "";
process.stdin.on("data", (piece) => (text += piece));
process.stdin.on("end", () =>
  main(JSON.parse(text)).then(
    (found) => console.log(JSON.stringify(found)),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  ),
);
