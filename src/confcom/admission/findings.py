"""Every sentence for the author of a pod: what is wrong, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

REFUSALS: Mapping[str, str] = {
    "unit-twice": "Container {container}: {amount} of {resource} is {size}, because this resource counts MiB already. "
    "Write {proposal}.",
    "not-whole": "Container {container}: {amount} of {resource} is no whole number of MiB. Write {proposal}.",
    "bytes-without-unit": "Container {container}: {amount} of {resource} is {size}, less than one page, because this "
    "resource counts bytes. Write {proposal}.",
    "no-amount": "Container {container}: {amount} is no amount of {resource}. Write {proposal}.",
    "too-much": "Container {container}: {amount} of {resource} is more EPC than any machine has. Write {proposal}.",
    "amounts-differ": "Container {container} states its EPC under two names with different amounts: {found}. "
    "Keep one of them.",
    "requests-differ": "Container {container} requests {requests} of {resource} with a limit of {limits}; they must be "
    "the same. Leave the request out.",
    "limit-missing": "Container {container} requests {resource} without a limit. Write the amount under limits; the "
    "request follows from it.",
    "epc-missing": "Container {container} asks for {resource}, but for no EPC, which would then be counted nowhere. "
    "Add a limit such as kubernetes.azure.com/sgx_epc_mem_in_MiB: 10.",
    "epc-misplaced": "{amount} of {resource} stands in {place}, where nothing counts it. Write {resource}: {amount} in "
    "resources.limits of the container that uses it.",
    "name-split": "The name {resource} is split at its dots into maps in {place}. Write {resource}: {amount} there, in "
    "one line.",
    "resource-without-name": "Container {container}: {amount} stands in its {kind} under an empty name. Write the name "
    "of the resource before it, such as kubernetes.azure.com/sgx_epc_mem_in_MiB: {amount}.",
    "no-node-holds-it": "The pod asks for {wanted} MiB of EPC on one node, and the largest node of this cluster has "
    "{largest} MiB. Lower the limits, or add a node that has as much.",
    "provision-not-granted": "Container {container} asks for the provisioning device, which service account {account} "
    "has not been granted. Get quotes from the node's helper instead (annotation confcom.dev/quote-mode: out-of-proc, "
    "and no sgx.intel.com/provision), or ask an operator for the grant {account}.",
    "both-modes": "Container {container} is to get its quotes in-proc ({in_proc}) and out-of-proc ({out_of_proc}). "
    "An application uses one of them: remove the other.",
    "modes-differ": "The annotations {first} and {second} contradict each other. Remove one of them.",
    "unknown-mode": "The annotation {annotation} is {value}. Write out-of-proc or in-proc.",
    "unknown-container": "The annotation {annotation} names the container {container}, and the pod has {present}. "
    "Correct the name.",
    "mode-without-epc": "The annotation {annotation} is about {subject}, which requests no EPC. Add a limit such as "
    "kubernetes.azure.com/sgx_epc_mem_in_MiB: 10, or remove the annotation.",
    "own-aesmd": "The pod has a container aesmd of its own, and here the node's helper answers the others. Remove that "
    "container, or the annotation sgx.intel.com/quote-provider and mount a volume of the pod at /var/run/aesmd.",
    "too-many": "The pod has {count} {things}, and a pod that uses SGX has at most {limit}. Make several pods of it.",
    "blank-in-image": "Container {container}: the image {image} has a blank in it. Write {proposal}.",
    "debug-resources": "Ephemeral container {container} cannot have SGX devices: Kubernetes gives ephemeral containers "
    "no resources. Use `kubectl debug --copy-to`, which makes a new pod.",
    "debug-volume": "Ephemeral container {container} is to ask the node's helper for quotes, but Kubernetes gives "
    "ephemeral containers no resources, and the pod has no volume of /var/run/aesmd and can get none now. Use "
    "`kubectl debug --copy-to`, which makes a new pod.",
    "incomplete": "The pod is not what the SGX webhook made of it ({paths}): another admission webhook has changed it "
    "since. Let that one come first, or exclude SGX pods from it.",
    # The API server rejects these manifests itself, so only checks of manifests report them.
    "text-expected": "Container {container}: the variable {name} has the value {value}, which is no text in YAML. "
    'Put it in quotes, as in "{value}".',
    "word-expected": "Container {container}: {name} has the word {value}, which is no text in YAML. Put it in quotes, "
    'as in "{value}".',
}
"""Code → sentence, for refusals."""

WARNINGS: Mapping[str, str] = {
    "rounded-up": "Container {container}: {amount} of {resource} counts as {size}.",
    "no-node-has-epc": "No node of this cluster publishes EPC, so the pod stays Pending. Label an SGX node "
    "(confcom.dev/sgx=true) and see `confcom addon show`.",
    "no-node-holds-it-yet": "The pod asks for {wanted} MiB of EPC on one node, and the largest node of this cluster "
    "has {largest} MiB: it stays Pending until there is a larger one.",
    "variable-without-epc": "Container {container} sets SGX_AESM_ADDR but requests no EPC, so it gets no enclave "
    "device.",
    "epc-uncounted": "{amount} of {resource} stands in {place}, where nothing counts it. Write {resource}: {amount} in "
    "resources.limits of the container that uses it.",
    "unknown-resource": "Container {container}: no node publishes {resource}, so the pod waits for ever. Write "
    "kubernetes.azure.com/sgx_epc_mem_in_MiB (MiB) or sgx.intel.com/epc (bytes), with {amount}.",
    "device-by-hand": "Container {container} gets {path} of the host by hand (volume {volume}): EPC beyond its "
    "limits is not counted. Remove the volume; a limit of EPC brings the device.",
    "provision-by-hand": "Container {container} gets {path} of the host by hand (volume {volume}): EPC beyond its "
    "limits is not counted, the provisioning device not granted. Remove the volume; limits of EPC, and a grant, bring "
    "the devices.",
    "privileged": "Container {container} is privileged: it reaches every SGX device of its node, beside what is "
    "counted and granted. Remove privileged; the EPC limit brings the device.",
    "helper-off": "The pod gets its quotes from the node's helper, which is not enabled here, so it will not start. "
    "Enable it: confcom addon update --addon confcom --enable-sgxquotehelper.",
    "folder-empty": "The pod mounts the node's /var/run/aesmd, where no quote helper answers: it is not enabled here. "
    "Enable it: confcom addon update --addon confcom --enable-sgxquotehelper.",
    "socket-mounted": "Container {container} mounts the socket {path} itself, which is another one after each update "
    "of the helper. Mount the folder /var/run/aesmd.",
}
"""Code → sentence, for warnings about admitted pods. The API server cuts them at 256 characters."""

MAX_VALUE = 80
"""Characters of any value that a sentence repeats."""
MAX_FINDINGS = 8


class Finding(NamedTuple):
    """A refusal or warning; `code` is for machines and never changes."""

    code: str
    sentence: str


class Findings:
    """Refusals and warnings about a pod, in the order in which they were found."""

    def __init__(self) -> None:
        self.refusals: list[Finding] = []
        self.warnings: list[Finding] = []

    def refuse(self, code: str, **values: object) -> None:
        _add(self.refusals, code, REFUSALS[code], values)

    def warn(self, code: str, **values: object) -> None:
        _add(self.warnings, code, WARNINGS[code], values)


def _add(found: list[Finding], code: str, sentence: str, values: Mapping[str, object]) -> None:
    if len(found) < MAX_FINDINGS:
        finding = Finding(code, sentence.format_map({name: _shown(value) for name, value in values.items()}))
        if finding not in found:
            found.append(finding)


def _shown(value: object) -> str:
    """A value from the pod, cut to `MAX_VALUE`, without characters that a terminal would interpret."""
    text = str(value)
    text = "".join(sign if sign.isprintable() else "?" for sign in text[: MAX_VALUE + 1])
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
