// Draws the figures over the layer that needs no script.  Colours are read from the style sheet, so that there is one
// place for them; sizes follow the width of the page.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const text = (id) => document.getElementById(id).textContent;
  const figures = JSON.parse(text("figures"));
  const GAP = 14, BELOW = 22, ABOVE = 20, SCALE = 84, LETTER = 6.5; // pixels around the panels of a heat map
  const PAPER = 660; // pixels across a printed page

  const bytesOf = (base64) => {
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  };

  // plotlyjs.py says which alphabet and why.
  function unpacked(element) {
    const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
    const digit = Object.fromEntries([...alphabet].map((letter, value) => [letter.charCodeAt(0), value]));
    const table = Uint8Array.from({ length: 128 }, (_, code) => digit[code]);
    const packed = element.textContent;
    const bytes = new Uint8Array((packed.length / 5) * 4);
    for (let i = 0, at = 0; i < packed.length; i += 5, at += 4) {
      let word = 0;
      for (let k = 0; k < 5; k++) word = word * 85 + table[packed.charCodeAt(i + k)];
      for (let k = 0; k < 4; k++) bytes[at + k] = word >>> (24 - 8 * k);
    }
    return bytes.subarray(0, Number(element.dataset.bytes));
  }

  const inflated = (element) => {
    const packed = new Blob([unpacked(element)]).stream();
    return new Response(packed.pipeThrough(new DecompressionStream("gzip")));
  };

  async function loadPlotly() {
    const script = document.createElement("script");
    script.textContent = await inflated(document.getElementById("plotly")).text();
    document.head.append(script); // runs here and now, if the page's policy knows its hash
    if (!window.Plotly) throw new Error("plotly.js did not start");
  }

  // --- Colours ---------------------------------------------------------------------------------------------------

  function colours() {
    const probe = document.body.appendChild(document.createElement("span"));
    const read = (name) => ((probe.style.color = `var(--${name})`), getComputedStyle(probe).color);
    const names = ["ink", "soft", "line", "surface", "inert", "positive", "negative"];
    const found = Object.fromEntries(names.map((name) => [name, read(name)]));
    probe.remove();
    return found;
  }

  let scheme; // the colours and the template of the scheme at hand: reading them makes the browser lay the page out

  function readScheme() {
    const c = colours();
    scheme = { inert: c.inert, template: template(c), oneSided: [[0, c.surface], [1, c.positive]] };
  }

  function template(c) {
    const lines = { gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line };
    const axis = { ...lines, automargin: true, title: { standoff: 8 } };
    return {
      data: { bar: [{ error_y: { color: c.ink, thickness: 1.5, width: 5 } }] },
      layout: {
        bargap: 0.5,
        font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: c.ink },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis, yaxis: axis,
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        hoverlabel: { bgcolor: c.surface, bordercolor: c.line, font: { color: c.ink } },
        coloraxis: {
          colorscale: [[0, c.negative], [0.5, c.surface], [1, c.positive]],
          colorbar: { thickness: 10, outlinewidth: 0, len: 1, y: 1, yanchor: "top", nticks: 5 },
        },
        annotationdefaults: { font: { size: 12, color: c.soft } },
      },
    };
  }

  // --- Sizes -----------------------------------------------------------------------------------------------------

  // The legend stands above the plot and takes nothing from it.
  function single({ data, layout }, width) {
    const names = layout.showlegend ? data.filter((trace) => trace.name).map((trace) => trace.name.length) : [];
    const inRow = Math.max(1, Math.floor((width - 40) / (50 + LETTER * Math.max(...names, 0))));
    const legend = 20 * Math.ceil(names.length / inRow);
    const plot = Math.round(Math.min(360, Math.max(240, width * 0.5)));
    return { height: plot + legend, margin: { l: 10, r: 10, t: 10, b: 10 } };
  }

  // As many panels in a row as fit, each cell a square, all on one scale.
  function arranged({ panels: [panels, rows, columns], layout: drawn }, width) {
    const longest = (axis) => LETTER * Math.max(...drawn[axis].ticktext.map((label) => label.length), 1);
    const LEFT = 12 + longest("yaxis");
    const inner = Math.max(width - SCALE, 120);
    const across = Math.max(1, Math.min(panels, Math.floor(inner / (width < 560 ? 130 : 190))));
    const panel = Math.min(inner / across, 300) - GAP - LEFT;
    const tall = Math.min(panel * rows / Math.max(columns, 1), 420);
    const down = Math.ceil(panels / across);
    const step = { x: panel + GAP + LEFT, y: tall + ABOVE + BELOW };
    const plot = { w: across * step.x, h: down * step.y };
    const right = Math.max(width - plot.w, SCALE);
    const layout = { height: plot.h + 6, margin: { l: 0, r: right, t: 0, b: 6, autoexpand: false } };
    const axis = { showgrid: false, zeroline: false, automargin: false, ticks: "", fixedrange: true };
    const small = { ...axis, tickangle: 0, tickfont: { size: 10 } };
    for (let i = 0; i < panels; i++) {
      const n = i === 0 ? "" : i + 1;
      const left = (i % across) * step.x + LEFT, top = Math.floor(i / across) * step.y + ABOVE;
      const { tickvals, ticktext } = drawn[`xaxis${n}`];
      const every = Math.ceil((tickvals.length * (longest("xaxis") + 5)) / panel);
      const some = (list) => list.filter((_, index) => index % every === 0);
      const over = [left / plot.w, Math.min(1, (left + panel) / plot.w)];
      layout[`xaxis${n}`] = { ...small, domain: over, tickvals: some(tickvals), ticktext: some(ticktext) };
      layout[`yaxis${n}`] = { ...small, domain: [Math.max(0, 1 - (top + tall) / plot.h), 1 - top / plot.h] };
    }
    layout.coloraxis = { colorbar: { lenmode: "pixels", len: Math.max(90, Math.min(tall + 20, 200)), x: 1, xpad: 8 } };
    return layout;
  }

  const merged = (base, extra) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(extra)) {
      const deep = value && typeof value === "object" && !Array.isArray(value) && out[key];
      out[key] = deep ? merged(out[key], value) : value;
    }
    return out;
  };

  function layoutOf(figure, width) {
    const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page
    const own = { template: scheme.template, width, dragmode: touch || figure.panels ? false : "zoom" };
    if (!figure.panels) return merged(merged(figure.layout, single(figure, width)), own);
    const scale = figure.oneSided ? { coloraxis: { colorscale: scheme.oneSided } } : {};
    return merged(merged(figure.layout, arranged(figure, width)), { ...own, ...scale, plot_bgcolor: scheme.inert });
  }

  // --- Drawing ---------------------------------------------------------------------------------------------------

  // The layer that needs no script: its picture, and its numbers.
  function beneath(place, shown) {
    const still = place.parentElement.querySelector(".still"), numbers = place.parentElement.querySelector("details");
    if (still) still.hidden = !shown;
    if (numbers) numbers.open = shown;
  }

  const lost = () => (document.getElementById("no-figures").hidden = false);
  const drawing = new Map(); // a reader, a printer and the idle hours may all ask for the same figure

  function draw(place) {
    if (!drawing.has(place)) drawing.set(place, drawNow(place).catch(() => (lost(), beneath(place, true))));
    return drawing.get(place);
  }

  async function drawNow(place) {
    const figure = figures[place.id];
    await Plotly.newPlot(place, figure.data, layoutOf(figure, place.clientWidth), { displayModeBar: false });
    place.style.height = "";
    place.dataset.width = place.clientWidth;
    place.dataset.drawn = "yes";
    all(".slider input", place.parentElement).forEach(slide);
  }

  // Each figure has its room from the start, and is drawn when the reader is within a screen of it.
  async function drawNear(places) {
    const near = new IntersectionObserver((entries) => {
      for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
        near.unobserve(target);
        draw(target);
      }
    }, { rootMargin: "100% 0%" });
    for (const place of places) {
      place.hidden = false;
      beneath(place, false);
      place.style.height = `${layoutOf(figures[place.id], place.clientWidth).height}px`;
    }
    await Promise.all(places.filter((place) => place.getBoundingClientRect().top < innerHeight).map(draw));
    places.forEach((place) => near.observe(place));
  }

  // The others follow while the page is idle, so that it answers all the while.
  async function drawRest(places) {
    const idle = window.requestIdleCallback || setTimeout;
    for (const place of places) {
      if (!drawing.has(place)) await new Promise((resolve) => idle(resolve));
      await draw(place);
    }
  }

  // A figure that has changed.
  async function renew(place) {
    place.hidden = !(place.id in figures);
    if (place.hidden || !window.Plotly) return;
    const { data, layout } = { ...figures[place.id], layout: layoutOf(figures[place.id], place.clientWidth) };
    await Plotly.react(place, data, layout, { displayModeBar: false });
    place.dataset.width = place.clientWidth;
    place.dataset.drawn = "yes";
  }

  function redraw(places, { recoloured = false, width = 0 } = {}) {
    for (const place of places) {
      const wide = width || place.clientWidth;
      if (!place.dataset.drawn || !wide || (!recoloured && Number(place.dataset.width) === wide)) continue;
      place.dataset.width = wide;
      Plotly.react(place, place.data, layoutOf(figures[place.id], wide));
    }
  }

  // Sliders of a card that go through the same moments move together.
  function slide(input) {
    const within = input.closest("figure");
    const place = within.querySelector(".drawn"), output = within.querySelector("output");
    const { frames, panels: [panels, rows, columns] } = figures[place.id];
    const z = new Float32Array(bytesOf(frames.z.bdata).buffer);
    const row = (moment, panel, index) => {
      const start = ((moment * panels + panel) * rows + index) * columns;
      return z.subarray(start, start + columns);
    };
    const matrix = (moment, panel) => Array.from({ length: rows }, (_, index) => row(moment, panel, index));
    let waiting = false;
    const show = () => {
      waiting = false;
      const moment = Number(input.value);
      Plotly.restyle(place, { z: Array.from({ length: panels }, (_, panel) => matrix(moment, panel)) });
    };
    const moved = () => {
      output.textContent = frames.moments[Number(input.value)].toLocaleString("en");
      input.setAttribute("aria-valuetext", output.textContent);
      if (!waiting) requestAnimationFrame(show);
      waiting = true;
    };
    const same = (other) => String(figures[other.dataset.figure].frames.moments) === String(frames.moments);
    input.addEventListener("input", () => {
      for (const other of all(".slider:not([hidden]) input", input.closest(".card")).filter(same)) {
        other.value = input.value;
        other.dispatchEvent(new Event("moved"));
      }
    });
    input.addEventListener("moved", moved);
    input.setAttribute("aria-valuetext", output.textContent);
    input.closest(".slider").hidden = false;
  }

  // --- Tables ----------------------------------------------------------------------------------------------------

  const typed = (cell) => cell.textContent.replaceAll(",", "").replaceAll("−", "-").replaceAll("∞", "Infinity");
  const byNumberThenName = (a, b) => parseFloat(a) - parseFloat(b) || a.localeCompare(b, "en", { numeric: true });

  function sortable(table) {
    const body = table.tBodies[0], heads = all("thead th", table);
    if (body.rows.length < 3) return;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = (a, b) => byNumberThenName(typed(a.cells[column]), typed(b.cells[column]));
        body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
      });
    });
  }

  // What scrolls sideways has to be reached by keyboard.
  function focusable() {
    for (const box of all(".scroll")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1;
      const label = box.querySelector("caption")?.textContent || "Scrolls sideways";
      for (const [name, value] of Object.entries({ tabindex: "0", role: "group", "aria-label": label })) {
        scrolls ? box.setAttribute(name, value) : box.removeAttribute(name);
      }
    }
  }

  // --- Start -----------------------------------------------------------------------------------------------------

  async function start() {
    await window.prepare?.({ figures, inflated, renew, all });
    all("table.sortable").forEach(sortable);
    focusable();
    let asked = false;
    const soon = () => {
      if (!asked) requestAnimationFrame(() => ((asked = false), focusable()));
      asked = true;
    };
    addEventListener("resize", soon);
    all("details").forEach((details) => details.addEventListener("toggle", soon));
    const anywhere = all(".drawn"), places = anywhere.filter((place) => place.id in figures);
    const dark = matchMedia("(prefers-color-scheme: dark)"), button = document.getElementById("theme");
    const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
    const themed = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      readScheme();
      redraw(anywhere, { recoloured: true });
    };
    button.addEventListener("click", () => ((root.dataset.theme = isDark() ? "light" : "dark"), themed()));
    dark.addEventListener("change", themed);
    themed();
    button.hidden = false;
    if (places.length) {
      try {
        await loadPlotly();
        await drawNear(places);
        root.dataset.usable = "yes";
        new ResizeObserver(() => redraw(anywhere)).observe(document.querySelector("main"));
        addEventListener("beforeprint", () => {
          places.filter((place) => !place.dataset.drawn).forEach(draw);
          redraw(anywhere, { width: PAPER });
        });
        addEventListener("afterprint", () => redraw(anywhere));
        if (root.dataset.draw !== "late") await drawRest(places); // a gallery has too many
      } catch (error) {
        lost();
      }
    }
    root.dataset.ready = "yes";
  }
  start();
})();
