// One line that says what goes on; screen readers hear its changes, progress is a bar beside it.

function render({ model, el }) {
  el.classList.add("palkit-status");
  el.innerHTML = `<span role="status" aria-live="polite"></span><progress aria-label="Progress" hidden></progress>`;
  const [text, bar] = el.children;
  const show = () => {
    if (text.textContent !== model.get("text")) text.textContent = model.get("text");
    el.dataset.kind = model.get("kind");
    const [done, total] = [model.get("done"), model.get("total")];
    bar.hidden = model.get("kind") !== "busy";
    bar.max = Math.max(1, total);
    if (done) bar.value = done;
    else bar.removeAttribute("value"); // how far is not known
  };
  show();
  model.on("change", show);
  return () => model.off("change", show);
}

export default { render };
