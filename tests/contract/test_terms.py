"""One spelling of each term of the field in the sentences of all pages; code and addresses are left out."""

from __future__ import annotations

import re

import pytest

from documented import ROOT

TERMS = {
    "AESM": "Aesm|aesm",
    "Azure Attestation": "Azure attestation|azure attestation",
    "Dockerfile": "dockerfile|DockerFile",
    "EPC": "Epc|epc",
    "FMSPC": "Fmspc|fmspc",
    "Gramine": "gramine",
    "Helm chart": "helm chart|Helm Chart",
    "Kubernetes": "kubernetes|[Kk]8[Ss]",
    "MRENCLAVE": "MrEnclave|[Mm]renclave|MR_ENCLAVE|MR ENCLAVE|mr_enclave",
    "MRSIGNER": "MrSigner|[Mm]rsigner|MR_SIGNER|MR SIGNER|mr_signer",
    "MRTD": "MrTd|mr_td|MRTd|MR_TD",
    "MiB": "MIB|Mib|mib",
    "Open Enclave": "OpenEnclave|[Oo]pen enclave",
    "PCCS": "Pccs|pccs",
    "PCK certificate": "PCK cert|Pck certificate|PCK-certificate",
    "QE identity": "QE Identity|QEIdentity|qe identity|QE-identity",
    "QPL": "qpl",
    "RA-TLS": "RATLS|RA TLS|ra-tls|Ra-Tls",
    "SGX": "Sgx|sgx",
    "TCB info": "TCB ?Info|tcb info|TCBinfo|TcbInfo",
    "TCB recovery": "TCB Recovery|TCB-recovery|tcb recovery",
    "TDX": "Tdx|tdx",
    "UpToDate": "Up To Date|Uptodate",
    "admission webhook": "Admission Webhook|admission-webhook",
    "attestation service": "Attestation Service|attestation-service",
    "collateral service": "Collateral Service|collateral-service",
    "collateral": "collaterals",
    "device plugin": "device-plugin|Device Plugin|[Dd]eviceplugin",
    "in-proc": "[Ii]n proc|[Ii]n-process|[Ii]nproc",
    "out-of-proc": "[Oo]ut of proc(?:ess)?|[Oo]ut-of-process",
    "quote helper": "quote-helper|quotehelper|Quote Helper|quoting helper",
    "quoting enclave": "Quoting Enclave|quoting-enclave|quote enclave",
    "relying party": "relying-party|Relying Party",
    "report data": "ReportData|report-data|reportdata|Report Data",
}
"""A term to the spellings that stand for the same."""
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")} - {ROOT / "CHANGELOG.md"}
)
CODE = r'(?ms)^```.*?^```|^ {4,}\S[^\n]*|`[^`]*`|\]\([^)]*\)|https?://\S+|\*[a-z ]+\*|"Get [^"]*"|[\w-]+ #\d+'


def misspelt(text: str) -> list[str]:
    """What is written otherwise, with the words around it."""
    prose = re.sub(CODE, " ", text)
    found = []
    for term, others in TERMS.items():
        for each in re.finditer(rf"(?<![\w./:-])(?:{others})(?![\w/:=-]|\.\w)", prose):
            around = " ".join(prose[max(0, each.start() - 30) : each.end() + 20].split())
            found.append(f"{term}, not {each[0]!r}: {around}")
    return found


def test_terms_have_one_spelling() -> None:
    found = {str(page.relative_to(ROOT)): wrong for page in PAGES if (wrong := misspelt(page.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The Quote Helper asks the quote-helper.", 2),
        ("An mrenclave of k8s, in process out of process", 3),
        ("`mr_enclave`, sgx.intel.com/epc, --mr-signer\n    confcom quote-helper\n[x](quote-helper.md)\n", 0),
        ("EPC, MRENCLAVE, quote helper, in-proc", 0),
    ],
)
def test_another_spelling_is_noticed(text: str, count: int) -> None:
    assert len(misspelt(text)) == count


def test_terms_of_the_glossary_are_in_the_alphabet_of_their_page() -> None:
    page = (ROOT / "docs" / "reference" / "glossary.md").read_text()
    terms = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)[1:]
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.lower)
