// Puts a chosen or dropped file into the text field: text as it is, everything else in base64.
"use strict";

const form = document.getElementById("drop");

if (form) {
  const field = document.getElementById("evidence");
  const state = document.getElementById("state");
  const chosen = document.getElementById("file");
  const limit = Number(form.dataset.limit);
  document.getElementById("files").hidden = false;

  const take = async (file, then) => {
    // Base64 takes four characters for three bytes.
    if (file.size * 4 > limit * 3) {
      state.textContent = `${file.name} is too large: ${file.size} bytes.`;
      return;
    }
    const bytes = new Uint8Array(await file.arrayBuffer());
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
      if (/[\0-\x08]/.test(text)) throw new TypeError("binary");
      field.value = text;
    } catch {
      field.value = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    }
    state.textContent = `${file.name}: ${file.size} bytes.`;
    then();
  };

  chosen.addEventListener("change", () => {
    if (chosen.files.length) take(chosen.files[0], () => {});
  });
  form.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0], () => form.requestSubmit());
  });
}
