// Labelling by keyboard: what is shown comes from the kernel, every answer goes there at once and counts once it is back.

const RESERVED = { u: "unsure", s: "skip", z: "undo", n: "next", g: "grid" };
const LETTERS = [..."abcdefhijklmopqrtvwxy"];
const PATIENCE = 2000; // ms that an answer may take to be stored before the page says so

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null)); // text stays text
  return node;
}

const keyOf = (index) => (index < 9 ? String(index + 1) : LETTERS[index - 9] ?? "");
const percentage = (share) => `${(100 * share).toFixed(0)} %`;

function answerOf(item) {
  if (item.answer === "label") return item.label;
  return { unsure: "unsure", skip: "skipped" }[item.answer] ?? "";
}

function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text])), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function render({ model, el }) {
  const id = Math.random().toString(36).slice(2); // each widget loads this module anew: a counter would start again
  const name = (part) => `palkit-labeller-${id}-${part}`;
  const view = () => model.get("view");
  let at = 0; // the image in focus
  let shown = null; // the batch that `at` belongs to
  let grid = false;
  let sent = new Map(); // answers that are on their way: serial -> image
  let serial = 0;
  let addresses = [];
  let built = []; // the classes that have buttons

  // What goes to the kernel

  function tell(message) {
    model.send({ ...message, serial: ++serial });
    setTimeout(complain, PATIENCE);
  }

  function answer(action, label = "") {
    const item = view().items[at];
    if (!item || sent.has(item.id)) return;
    sent.set(item.id, serial + 1);
    tell({ type: action, id: item.id, label });
    at = following();
    draw();
  }

  function following() {
    const items = view().items;
    const open = (i) => !items[i].answer && !sent.has(items[i].id);
    const later = items.findIndex((_, i) => i > at && open(i));
    if (later >= 0) return later;
    const earlier = items.findIndex((_, i) => open(i));
    return earlier >= 0 ? earlier : Math.min(at + 1, items.length - 1);
  }

  function complain() {
    if (!sent.size) return;
    waiting.textContent =
      `${sent.size} ${sent.size === 1 ? "answer is" : "answers are"} not stored yet: the kernel does not answer. ` +
      "If it is gone, run the cell again; what was stored is there again, the rest has to be answered again.";
  }

  const act = {
    unsure: () => answer("unsure"),
    skip: () => answer("skip"),
    undo: () => tell({ type: "undo" }),
    next: () => view().busy || tell({ type: "next" }),
    grid: () => {
      grid = !grid;
      draw();
    },
  };

  function add() {
    const value = added.value.trim();
    if (value) tell({ type: "class", label: value });
    added.value = "";
    root.focus();
  }

  // The parts of the page

  const button = (text, onclick, title = "") => make("button", { type: "button", title, onclick }, text);
  const keyed = (text, key, onclick) =>
    make("button", { type: "button", onclick, "aria-keyshortcuts": key }, make("kbd", {}, key), ` ${text}`);
  const progress = make("progress", { id: name("progress") });
  const count = make("label", { htmlFor: progress.id });
  const queue = make("select", { id: name("queue"), onchange: () => tell({ type: "queue", queue: queue.value }) });
  const guess = make("input", { id: name("guess"), type: "checkbox", onchange: () => draw() });
  const toggle = keyed("", "g", act.grid);
  const stage = make("div", { className: "palkit-labeller-stage" });
  const classes = make("div", { className: "palkit-labeller-classes", role: "group", "aria-label": "Classes" });
  const added = make("input", { id: name("class"), type: "text", size: 14 });
  added.addEventListener("keydown", (event) => event.key === "Enter" && add());
  const undo = keyed("undo", "z", act.undo);
  const others = make("div", { className: "palkit-labeller-others", role: "group", "aria-label": "Other answers" },
    keyed("unsure", "u", act.unsure), keyed("skip", "s", act.skip), undo);
  const news = make("p", { role: "status", "aria-live": "polite", className: "palkit-labeller-news" });
  const waiting = make("p", { role: "alert", className: "palkit-labeller-problem" });
  const next = keyed("next round: train and propose", "n", act.next);
  const work = make("progress", { "aria-label": "Progress of the computation", hidden: true });
  const cancel = button("Cancel", () => tell({ type: "cancel" }));
  const curve = make("img", { className: "palkit-labeller-curve", hidden: true });
  const outlook = make("p", { className: "palkit-labeller-outlook" });
  const agreement = make("p");
  const file = make("input", { id: name("import"), type: "file", accept: ".csv,.tsv,.json", onchange: load });

  async function load() {
    const [chosen] = file.files;
    if (chosen) tell({ type: "import", name: chosen.name, text: await chosen.text() });
    file.value = "";
  }

  const root = make("section", { className: "palkit-labeller", tabIndex: 0, "aria-label": "Label images" },
    make("div", { className: "palkit-labeller-bar" },
      make("span", {}, count, progress),
      make("span", {}, make("label", { htmlFor: queue.id }, "Images"), queue),
      toggle,
      make("span", {}, guess, make("label", { htmlFor: guess.id }, "show the model's guess"))),
    news, waiting,
    make("div", { className: "palkit-labeller-desk" },
      stage,
      make("div", { className: "palkit-labeller-side" }, classes, others,
        make("div", { className: "palkit-labeller-new" }, make("label", { htmlFor: added.id }, "New class"), added, button("add", add)))),
    make("div", { className: "palkit-labeller-bar" }, next, work, cancel),
    make("div", { className: "palkit-labeller-result" }, curve, make("div", {}, outlook, agreement)),
    make("div", { className: "palkit-labeller-bar" },
      button("export CSV", () => tell({ type: "export", format: "csv" })),
      button("export Label Studio", () => tell({ type: "export", format: "json" })),
      make("span", {}, make("label", { htmlFor: file.id }, "Import labels"), file)));
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  el.append(root);

  // Drawing

  function caption(item) {
    const parts = [item.id];
    if (item.purpose === "held out") parts.push("for evaluation only");
    if (item.purpose === "second opinion") parts.push("second opinion");
    if (item.said) parts.push(item.said);
    if (guess.checked && item.predicted) parts.push(`guess: ${item.predicted}, ${percentage(item.probability)}`);
    return parts.join(" · ");
  }

  const state = (item) => (sent.has(item.id) ? "saving…" : answerOf(item));

  function picture(item, index) {
    const address = addresses[index];
    if (!address) return make("p", { className: "palkit-labeller-problem" }, item.problem || "no picture");
    const image = make("img", { src: address, alt: `image ${item.id}` });
    image.style.imageRendering = item.small ? "pixelated" : "auto";
    return image;
  }

  function single() {
    const items = view().items;
    if (!items.length) return [make("p", {}, view().empty)];
    const item = items[at];
    return [
      make("div", { className: "palkit-labeller-single" }, picture(item, at)),
      make("div", { className: "palkit-labeller-bar" },
        button("‹", () => move(-1), "Previous image"),
        make("strong", {}, `${at + 1} of ${items.length}`),
        button("›", () => move(1), "Next image"),
        make("span", {}, caption(item)),
        make("span", { className: "palkit-labeller-answer" }, state(item))),
    ];
  }

  function tiles() {
    const items = view().items;
    if (!items.length) return [make("p", {}, view().empty)];
    const tile = (item, i) =>
      make("button",
        { type: "button", className: "palkit-labeller-tile", "aria-current": String(i === at),
          "aria-label": `image ${i + 1}, ${caption(item)}, ${state(item) || "no answer"}`,
          tabIndex: i === at ? 0 : -1, onclick: () => { at = i; draw(); root.focus(); } },
        picture(item, i), make("span", {}, state(item) || `${i + 1}`));
    return [make("div", { className: "palkit-labeller-tiles" }, ...items.map(tile)),
      make("p", {}, items[at] ? caption(items[at]) : "")];
  }

  function drawClasses() {
    const { names, items } = view();
    if (String(names) !== String(built)) {
      built = names;
      classes.replaceChildren(...names.map((label, i) => {
        const choose = () => answer("label", label);
        return keyOf(i) ? keyed(label, keyOf(i), choose) : button(label, choose);
      }));
    }
    const item = items[at];
    names.forEach((label, i) =>
      classes.children[i].setAttribute("aria-pressed", String(item?.answer === "label" && item.label === label)));
  }

  function draw() {
    const now = view();
    const inside = root.contains(root.getRootNode().activeElement);
    const { done, budget } = now.progress;
    count.textContent = budget ? `${done} of ${budget} labels` : `${done} labels`;
    progress.max = budget || Math.max(done, 1);
    progress.value = done;
    queue.replaceChildren(...now.queues.map(([value, n]) =>
      make("option", { value, selected: value === now.queue }, `${value} (${n})`)));
    toggle.replaceChildren(make("kbd", {}, "g"), grid ? " one at a time" : " all as a grid");
    news.textContent = now.news;
    stage.replaceChildren(...(grid ? tiles() : single()));
    drawClasses();
    undo.disabled = !now.undo;
    next.disabled = Boolean(now.busy);
    work.hidden = cancel.hidden = !now.busy;
    if (now.busy?.total) {
      work.max = now.busy.total;
      work.value = now.busy.done;
    } else work.removeAttribute("value");
    outlook.textContent = now.outlook;
    curve.alt = now.curve;
    agreement.textContent = now.agreement;
    // What had the focus may have been replaced; without it keys would go to JupyterLab.
    if (inside && !root.contains(root.getRootNode().activeElement)) root.focus({ preventScroll: true });
  }

  function move(by) {
    at = Math.min(Math.max(at + by, 0), view().items.length - 1);
    draw();
  }

  // What comes from the kernel

  function stored() {
    const now = view();
    for (const [image, number] of sent) if (number <= now.seen) sent.delete(image);
    if (!sent.size) waiting.textContent = "";
    if (now.batch !== shown) {
      shown = now.batch;
      at = Math.max(now.items.findIndex((item) => !item.answer), 0);
    } else if (now.undone !== null) {
      const back = now.items.findIndex((item) => item.id === now.undone);
      if (back >= 0) at = back;
    }
    draw();
  }

  function pictures() {
    addresses.forEach(URL.revokeObjectURL);
    addresses = model.get("pictures").map((bytes) =>
      bytes.byteLength ? URL.createObjectURL(new Blob([bytes])) : null);
    draw();
  }

  function drawCurve() {
    const bytes = model.get("curve");
    if (curve.src) URL.revokeObjectURL(curve.src);
    curve.hidden = !bytes.byteLength;
    if (bytes.byteLength) curve.src = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  }

  root.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=text], select");
    if (typing || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey) {
      if (key !== "z") return;
      act.undo();
    } else if (key === "arrowright" || key === "arrowdown") move(1);
    else if (key === "arrowleft" || key === "arrowup") move(-1);
    else if (key === "backspace") act.undo();
    else if (RESERVED[key]) act[RESERVED[key]]();
    else {
      const label = view().names.find((_, i) => keyOf(i) === key);
      if (label === undefined) return; // Tab, Enter and the like keep their meaning
      answer("label", label);
    }
    event.preventDefault();
    event.stopPropagation();
  });

  model.on("change:view", stored);
  model.on("change:pictures", pictures);
  model.on("change:curve", drawCurve);
  model.on("msg:custom", (message) => message.type === "file" && download(message.name, message.text));
  stored();
  pictures();
  drawCurve();
  return () => addresses.forEach(URL.revokeObjectURL);
}

export default { render };
