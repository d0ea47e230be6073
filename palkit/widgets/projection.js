// A map of many points on a plain canvas. Unproposed points are written as pixels, marks are drawn over them.

const REACH = 12; // pixels between the pointer and what it means
const KEPT = 500; // images that are not asked for twice
const SHAPES = ["dot", "cross", "circle", "square", "diamond"];

function render({ model, el }) {
  el.classList.add("palkit-map");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  el.innerHTML = `
    <div class="palkit-map-stage">
      <canvas tabindex="0" role="application"></canvas>
      <div class="palkit-map-buttons">
        <button type="button" data-do="in" aria-label="Zoom in" title="Zoom in (+)">+</button>
        <button type="button" data-do="out" aria-label="Zoom out" title="Zoom out (-)">−</button>
        <button type="button" data-do="all" aria-label="Show all" title="Show all (0)">⤢</button>
      </div>
      <div class="palkit-map-tip" hidden><img alt=""><span></span></div>
    </div>
    <ul class="palkit-map-legend" aria-label="Legend"></ul>
    <p class="palkit-map-hint">Drag to move. Click the map, then scroll to zoom. Keys: arrows go through the
      proposed images, Enter asks why, + − 0 zoom.</p>
    <div class="palkit-map-live" aria-live="polite"></div>`;
  const canvas = el.querySelector("canvas");
  const context = canvas.getContext("2d");
  const [tip, picture, words] = ["div.palkit-map-tip", ".palkit-map-tip img", ".palkit-map-tip span"].map((s) =>
    el.querySelector(s),
  );
  const live = el.querySelector(".palkit-map-live");
  const layer = document.createElement("canvas");
  const layerContext = layer.getContext("2d");
  const images = new Map(); // position -> {url, text}
  const view = { scale: 1, x: 0, y: 0 };
  let points, states, marks, colours;
  let width = 0, height = 0, ratio = 1;
  let hovered = null, asked = null, byKey = false, generation = -1;
  let frame = 0;

  const load = () => {
    const bytes = model.get("points");
    points = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    const kinds = model.get("states");
    states = new Uint8Array(kinds.buffer, kinds.byteOffset, kinds.byteLength);
    marks = [];
    for (let i = 0; i < states.length; i++) if (states[i]) marks.push(i);
    marks.sort((a, b) => states[a] - states[b]); // what both propose comes last, on top
    if (model.get("generation") !== generation) {
      generation = model.get("generation");
      for (const { url } of images.values()) URL.revokeObjectURL(url);
      images.clear();
      hover(null);
    }
    legend();
    draw();
  };

  const legend = () => {
    const list = el.querySelector(".palkit-map-legend");
    list.replaceChildren();
    const count = [0, 0, 0, 0, 0];
    for (const state of states) count[state]++;
    model.get("legend").forEach((name, state) => {
      const item = document.createElement("li");
      const swatch = document.createElement("canvas");
      swatch.width = swatch.height = 18 * ratio;
      const pen = swatch.getContext("2d");
      pen.scale(ratio, ratio);
      mark(pen, state, 9, 9, 3);
      item.append(swatch, `${name} (${count[state].toLocaleString("en")})`);
      list.append(item);
    });
    canvas.setAttribute("aria-label", `${model.get("label")}: ${list.innerText.replaceAll("\n", ", ")}`);
  };

  const theme = () => {
    const style = getComputedStyle(el);
    const read = (name) => style.getPropertyValue(name).trim();
    colours = {
      ground: read("--map-ground"), rest: read("--map-rest"), ink: read("--map-ink"),
      fills: ["", "", read("--map-a"), read("--map-b"), read("--map-both")],
    };
  };

  const place = (i) => [
    (points[2 * i] * side() + offset()[0]) * view.scale + view.x,
    (points[2 * i + 1] * side() + offset()[1]) * view.scale + view.y,
  ];
  const side = () => Math.min(width, height);
  const offset = () => [(width - side()) / 2, (height - side()) / 2];

  const draw = () => {
    if (!frame) frame = requestAnimationFrame(paint);
  };

  const paint = () => {
    frame = 0;
    if (!width || !points) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = colours.ground;
    context.fillRect(0, 0, canvas.width, canvas.height);
    rest();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const i of marks) mark(context, states[i], ...place(i));
    for (const i of [model.get("selected"), hovered]) if (i !== null && i < states.length) ring(...place(i));
  };

  const rest = () => {
    const image = layerContext.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    const [w, h] = [canvas.width, canvas.height];
    const [dx, dy] = offset();
    const factor = side() * view.scale * ratio;
    const left = (dx * view.scale + view.x) * ratio, top = (dy * view.scale + view.y) * ratio;
    const colour = packed(colours.rest);
    const size = Math.max(1, Math.round((states.length > 20000 ? 1.5 : 2) * ratio * Math.min(2, view.scale ** 0.4)));
    for (let i = 0; i < states.length; i++) {
      if (states[i]) continue;
      const x = (points[2 * i] * factor + left) | 0, y = (points[2 * i + 1] * factor + top) | 0;
      if (x < 0 || y < 0 || x + size >= w || y + size >= h) continue;
      for (let row = 0; row < size; row++) for (let column = 0; column < size; column++)
        pixels[(y + row) * w + x + column] = colour;
    }
    layerContext.putImageData(image, 0, 0);
    context.drawImage(layer, 0, 0);
  };

  const packed = (hex) => {
    const value = parseInt(hex.slice(1), 16);
    return (255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16);
  };

  // Shapes differ as well as colours: not everybody sees the same ones.
  const mark = (pen, state, x, y, dot = 1.5) => {
    const shape = SHAPES[state], r = [dot, 3.5, 5.5, 5, 7][state];
    pen.beginPath();
    if (shape === "cross") {
      pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r);
      pen.moveTo(x - r, y + r); pen.lineTo(x + r, y - r);
      pen.lineWidth = 3.5; pen.strokeStyle = colours.ground; pen.stroke();
      pen.lineWidth = 1.8; pen.strokeStyle = colours.ink; pen.stroke();
      return;
    }
    if (shape === "square") pen.rect(x - r, y - r, 2 * r, 2 * r);
    else if (shape === "diamond") {
      pen.moveTo(x, y - r); pen.lineTo(x + r, y); pen.lineTo(x, y + r); pen.lineTo(x - r, y); pen.closePath();
    } else pen.arc(x, y, r, 0, 2 * Math.PI);
    pen.fillStyle = shape === "dot" ? colours.rest : colours.fills[state];
    pen.fill();
    if (shape === "dot") return;
    pen.lineWidth = 1.2; pen.strokeStyle = colours.ground; pen.stroke();
  };

  const ring = (x, y) => {
    context.beginPath();
    context.arc(x, y, 10, 0, 2 * Math.PI);
    context.lineWidth = 5; context.strokeStyle = colours.ground; context.stroke();
    context.lineWidth = 2.5; context.strokeStyle = colours.ink; context.stroke();
  };

  const nearest = (x, y) => {
    const [dx, dy] = offset();
    const at = [((x - view.x) / view.scale - dx) / side(), ((y - view.y) / view.scale - dy) / side()];
    const reach = (REACH / view.scale / side()) ** 2;
    const among = (indices, length) => {
      let best = null, least = reach;
      for (let k = 0; k < length; k++) {
        const i = indices ? indices[k] : k;
        const gap = (points[2 * i] - at[0]) ** 2 + (points[2 * i + 1] - at[1]) ** 2;
        if (gap <= least) [best, least] = [i, gap];
      }
      return best;
    };
    return among(marks, marks.length) ?? among(null, states.length);
  };

  const hover = (position, key = false) => {
    if (position === hovered) return;
    [hovered, byKey] = [position, key];
    tip.hidden = true;
    canvas.style.cursor = position === null ? "grab" : "pointer";
    draw();
    if (position === null) return;
    if (images.has(position)) show(position);
    else ask();
  };

  // One question at a time, about where the pointer is now: a fast pointer queues nothing.
  const ask = () => {
    if (asked !== null || hovered === null) return;
    asked = hovered;
    model.send({ type: "hover", position: asked });
  };

  const show = (position) => {
    const { url, text } = images.get(position);
    picture.hidden = !url;
    picture.src = url;
    words.textContent = text;
    if (byKey) live.textContent = text;
    tip.hidden = false;
    const [x, y] = place(position);
    tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth - 4))}px`;
    const below = y + 14 + tip.offsetHeight <= height;
    tip.style.top = `${Math.max(0, below ? y + 14 : y - 14 - tip.offsetHeight)}px`;
  };

  const answered = (message, buffers) => {
    if (message.type !== "image") return;
    asked = null;
    if (message.generation === generation) {
      const bytes = buffers[0];
      const url = bytes.byteLength ? URL.createObjectURL(new Blob([bytes], { type: "image/png" })) : "";
      if (images.size >= KEPT) {
        const [[oldest, { url: old }]] = images;
        URL.revokeObjectURL(old);
        images.delete(oldest);
      }
      images.set(message.position, { url, text: message.text });
      if (message.position === hovered) show(hovered);
    }
    if (hovered !== null && !images.has(hovered)) ask();
  };

  const zoom = (factor, x = width / 2, y = height / 2) => {
    const scale = Math.max(0.5, Math.min(200, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    hover(null);
    draw();
  };
  const all = () => {
    Object.assign(view, { scale: 1, x: 0, y: 0 });
    hover(null);
    draw();
  };
  const choose = (position) => {
    if (position !== null) model.send({ type: "select", position });
  };
  const step = (by) => {
    const order = model.get("order");
    if (!order.length) return;
    const now = order.indexOf(hovered);
    const position = order[now < 0 ? (by > 0 ? 0 : order.length - 1) : (now + by + order.length) % order.length];
    const [x, y] = place(position);
    if (x < 0 || y < 0 || x > width || y > height) [view.x, view.y] = [view.x + width / 2 - x, view.y + height / 2 - y];
    hover(position, true);
  };

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, y: event.offsetY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return hover(nearest(event.offsetX, event.offsetY));
    const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    Object.assign(drag, { x: event.offsetX, y: event.offsetY, moved: true });
    view.x += dx;
    view.y += dy;
    hover(null);
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) choose(nearest(event.offsetX, event.offsetY));
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("blur", () => byKey && hover(null));
  canvas.addEventListener("wheel", (event) => {
    // A page must scroll past a map that nobody is using.
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  const keys = {
    ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
    Enter: () => choose(hovered), " ": () => choose(hovered), "+": () => zoom(1.5), "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5), 0: all,
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !(event.key in keys)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });
  const buttons = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), all };
  for (const button of el.querySelectorAll("button")) button.addEventListener("click", buttons[button.dataset.do]);

  const restyle = () => {
    theme();
    legend();
    draw();
  };
  const resize = () => {
    [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio || 1];
    canvas.width = layer.width = Math.round(width * ratio);
    canvas.height = layer.height = Math.round(height * ratio);
    restyle(); // styles are known once there is a size
  };
  const sizes = new ResizeObserver(resize);
  const themes = new MutationObserver(restyle);
  theme();
  load();
  sizes.observe(canvas);
  themes.observe(document.body, { attributes: true });
  themes.observe(document.documentElement, { attributes: true });
  model.on("change:generation", load);
  model.on("change:selected", draw);
  model.on("msg:custom", answered);
  return () => {
    sizes.disconnect();
    themes.disconnect();
    model.off("change:generation", load);
    model.off("change:selected", draw);
    model.off("msg:custom", answered);
    for (const { url } of images.values()) URL.revokeObjectURL(url);
  };
}

export default { render };
