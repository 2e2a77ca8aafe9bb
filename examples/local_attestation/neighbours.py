"""Two enclaves of one machine attest each other with reports: no quote, no quote helper, no collateral.

A report is made for one enclave, the target, on its machine: the processor computes a MAC with a key that only the
target can get. README.md has the commands.
"""

import argparse
import secrets
import sys
from pathlib import Path

import confcom

PRODUCT, MIN_SVN = 1, 2


def attest(prover: confcom.LocalEnclave, verifier: confcom.LocalEnclave, signer: bytes) -> confcom.ReportBody:
    """Who the prover is, once the verifier accepts it; `ConfcomError` says why it does not.

    The verifier's target info and its challenge go to the prover, the report comes back: the host may carry them.
    """
    challenge = secrets.token_bytes(64)
    report = bytes(prover.create_report(verifier.target_info, challenge))
    body = confcom.verify_local_report(verifier, report, challenge)
    # The report says who it is, truly; whether that is the expected program is ours to judge.
    expected = (signer, PRODUCT, False)
    if (body.mr_signer, body.isv_prod_id, body.attributes.debug) != expected or body.isv_svn < MIN_SVN:
        raise confcom.PolicyError(f"authentic, but not acceptable: {describe(body)}")
    return body


def describe(body: confcom.ReportBody) -> str:
    """One line about an enclave."""
    signer, debug = body.mr_signer.hex(), "debug ON" if body.attributes.debug else "debug off"
    return f"signer {signer[:16]}..., product {body.isv_prod_id}, security version {body.isv_svn}, {debug}"


def main() -> int:
    """Let each attest the other; the exit code is that of the `confcom` commands."""
    parser = argparse.ArgumentParser(description="Two enclaves of one machine attest each other.")
    parser.add_argument("--machine", type=Path, required=True, metavar="FILE", help="simulated machine")
    parser.add_argument("--signer", type=bytes.fromhex, required=True, metavar="HEX", help="MRSIGNER of both")
    parser.add_argument("enclaves", type=Path, nargs=2, metavar="ENCLAVE", help="what each enclave declares")
    options = parser.parse_args()
    try:
        a, b = (confcom.launch_enclave(options.machine, path) for path in options.enclaves)
        for name, prover, verifier in (("A", b, a), ("B", a, b)):
            print(f"{name}: accepted its neighbour: {describe(attest(prover, verifier, options.signer))}")
    except confcom.ConfcomError as error:
        print(f"{error.code}: {error}\n  what to do: {error.advice()}", file=sys.stderr)
        return confcom.exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
