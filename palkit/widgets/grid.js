// One page of an ImageGrid: toolbar, thumbnails out of one sheet, keyboard. The kernel sorts, pages and draws.

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children); // text stays text
  return node;
}

const counted = (number) => number.toLocaleString("en-GB");
const percentage = (share) => `${(100 * share).toFixed(0)} %`;

function describe(page, item) {
  const facts = page.caption.map((name, i) => `${name} ${item.caption[i] || "unknown"}`);
  if (item.bar !== null) facts.push(`${page.bar} ${percentage(item.bar)}`);
  return facts.join(", ") || `image ${item.position + 1}`;
}

function render({ model, el }) {
  const name = (part) => `palkit-grid-${id}-${part}`;
  const id = Math.random().toString(36).slice(2); // each widget loads this module anew: a counter would start again
  const turn = (by) => model.send({ type: "turn", by });
  const open = (number) => model.send({ type: "page", number });
  const order = (ascending) => model.send({ type: "sort", column: sort.value === "" ? null : sort.value, ascending });

  const sort = make("select", { id: name("sort"), onchange: () => order(model.get("page").ascending) });
  const direction = make("button", { type: "button", onclick: () => order(!model.get("page").ascending) });
  const button = (sign, label, onclick) => make("button", { type: "button", title: label, "aria-label": label, onclick }, sign);
  const first = button("«", "First page", () => open(1));
  const previous = button("‹", "Previous page", () => turn(-1));
  const next = button("›", "Next page", () => turn(1));
  const last = button("»", "Last page", () => open(model.get("page").pages));
  const number = make("input", { id: name("page"), type: "number", min: 1, step: 1 });
  const jump = () => Number.isInteger(number.valueAsNumber) && open(number.valueAsNumber);
  number.addEventListener("change", jump);
  number.addEventListener("keydown", (event) => event.key === "Enter" && jump()); // no "change" in JupyterLab then
  const pages = make("span");
  const paging = make(
    "span", {}, first, previous, make("label", { htmlFor: number.id }, "Page"), number, pages, next, last);
  const range = make("span", { className: "palkit-grid-range", role: "status", "aria-live": "polite" });
  const heading = make("strong", { id: name("label") });
  const problem = make("p", { className: "palkit-grid-problem", role: "alert" });
  const list = make("div", { className: "palkit-grid-images", role: "listbox", "aria-labelledby": name("label") });
  const toolbar = make(
    "div",
    { className: "palkit-grid-toolbar", role: "group", "aria-labelledby": name("label") },
    heading,
    make("span", {}, make("label", { htmlFor: sort.id }, "Sort by"), sort, direction),
    paging,
    range,
  );
  el.classList.add("palkit-grid");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  el.append(toolbar, problem, list);

  let address = null;
  let items = [];
  let active = 0;

  function focus(index) {
    items[active]?.setAttribute("tabindex", "-1");
    active = Math.min(Math.max(index, 0), items.length - 1);
    items[active]?.setAttribute("tabindex", "0");
    items[active]?.focus();
  }

  function select(index) {
    const page = model.get("page");
    model.send({ type: "select", position: page.items[index].position, generation: page.generation });
  }

  function mark() {
    const selected = model.get("selected");
    const page = model.get("page");
    items.forEach((node, i) => node.setAttribute("aria-selected", String(page.items[i].position === selected)));
  }

  function thumbnail(page, item, index) {
    const image = make("div", { className: "palkit-grid-image" });
    image.style.backgroundImage = `url("${address}")`;
    const column = index % page.sheet_columns;
    image.style.backgroundPosition = `${-column * page.side}px ${-((index - column) / page.sheet_columns) * page.side}px`;
    const node = make(
      "div",
      {
        className: "palkit-grid-item",
        role: "option",
        "aria-label": describe(page, item),
        "aria-posinset": page.first + index,
        "aria-setsize": page.total,
        onclick: () => (focus(index), select(index)),
      },
      image,
    );
    node.setAttribute("tabindex", "-1");
    if (item.bar !== null) {
      const fill = make("div");
      fill.style.width = `${100 * item.bar}%`;
      node.append(make("div", { className: "palkit-grid-bar" }, fill), make("div", {}, percentage(item.bar)));
    }
    node.append(...item.caption.map((text) => make("div", { className: "palkit-grid-caption", title: text }, text)));
    return node;
  }

  function draw() {
    const page = model.get("page");
    const focused = list.contains(document.activeElement);
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([model.get("sheet")], { type: "image/jpeg" }));
    el.style.setProperty("--palkit-grid-side", `${page.side}px`);
    heading.textContent = page.label;
    sort.replaceChildren(
      make("option", { value: "" }, "order given"),
      ...page.columns.map((column) => make("option", { value: column }, column)),
    );
    sort.value = page.sort ?? "";
    direction.textContent = page.ascending ? "↑ ascending" : "↓ descending";
    paging.hidden = page.pages <= 1;
    number.max = page.pages;
    number.value = page.number;
    pages.textContent = `of ${counted(page.pages)}`;
    // Really disabled, a button would lose the focus of whoever has just pressed it.
    for (const node of [first, previous]) node.setAttribute("aria-disabled", String(page.number <= 1));
    for (const node of [next, last]) node.setAttribute("aria-disabled", String(page.number >= page.pages));
    const end = page.first + page.items.length - 1;
    if (!page.total) range.textContent = page.empty;
    else if (!page.items.length) range.textContent = "loading images";
    else range.textContent = `images ${counted(page.first)}–${counted(end)} of ${counted(page.total)}`;
    items = page.items.map((item, index) => thumbnail(page, item, index));
    list.replaceChildren(...items);
    mark();
    items[Math.min(active, items.length - 1)]?.setAttribute("tabindex", "0");
    if (focused) focus(active);
  }

  function perRow() {
    const second = items.findIndex((node) => node.offsetTop > items[0].offsetTop);
    return second < 0 ? items.length : second;
  }

  const keys = {
    ArrowLeft: () => focus(active - 1),
    ArrowRight: () => focus(active + 1),
    ArrowUp: () => active >= perRow() && focus(active - perRow()),
    ArrowDown: () => active + perRow() < items.length && focus(active + perRow()),
    Home: () => focus(0),
    End: () => focus(items.length - 1),
    PageUp: () => turn(-1),
    PageDown: () => turn(1),
    Enter: () => select(active),
    " ": () => select(active),
  };
  list.addEventListener("keydown", (event) => {
    if (!items.length || !(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  const complain = () => (problem.textContent = model.get("problem"));
  const changes = { "change:page": draw, "change:selected": mark, "change:problem": complain };
  for (const [event, action] of Object.entries(changes)) model.on(event, action);
  draw();
  complain();
  return () => {
    for (const [event, action] of Object.entries(changes)) model.off(event, action);
    URL.revokeObjectURL(address);
  };
}

export default { render };
