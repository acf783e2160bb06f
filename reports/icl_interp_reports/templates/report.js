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

  async function loadPlotly() {
    const packed = new Blob([unpacked(document.getElementById("plotly"))]).stream();
    const script = document.createElement("script");
    script.textContent = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
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

  function template() {
    const c = colours();
    const axis = { gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line, automargin: true, title: { standoff: 8 } };
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

  const single = (width) => ({ height: Math.round(Math.min(380, Math.max(260, width * 0.5))), margin: { l: 10, r: 10, t: 10, b: 10 } });

  // As many panels in a row as fit, each cell a square, all on one scale.
  function arranged({ panels: [panels, rows, columns], layout: drawn }, width) {
    const longest = (axis) => LETTER * Math.max(...drawn[axis].ticktext.map((label) => label.length), 1);
    const LEFT = 12 + longest("yaxis");
    const inner = Math.max(width - SCALE, 120);
    const across = Math.max(1, Math.min(panels, Math.floor(inner / (width < 560 ? 145 : 190))));
    const panel = Math.min(inner / across, 300) - GAP - LEFT;
    const tall = Math.min(panel * rows / Math.max(columns, 1), 420);
    const down = Math.ceil(panels / across);
    const step = { x: panel + GAP + LEFT, y: tall + ABOVE + BELOW };
    const plot = { w: across * step.x, h: down * step.y };
    const layout = { height: plot.h + 6, margin: { l: 0, r: Math.max(width - plot.w, SCALE), t: 0, b: 6, autoexpand: false } };
    for (let i = 0; i < panels; i++) {
      const n = i === 0 ? "" : i + 1, left = (i % across) * step.x + LEFT, top = Math.floor(i / across) * step.y + ABOVE;
      const { tickvals, ticktext } = drawn[`xaxis${n}`];
      const every = Math.ceil((tickvals.length * (longest("xaxis") + 5)) / panel);
      const some = (list) => list.filter((_, index) => index % every === 0);
      layout[`xaxis${n}`] = { domain: [left / plot.w, Math.min(1, (left + panel) / plot.w)], tickvals: some(tickvals), ticktext: some(ticktext) };
      layout[`yaxis${n}`] = { domain: [Math.max(0, 1 - (top + tall) / plot.h), 1 - top / plot.h] };
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

  function layoutOf(figure, width, look) {
    const sizes = figure.panels ? arranged(figure, width) : single(width);
    const flat = { annotations: (figure.layout.annotations || []).map((a) => ({ ...a, font: look.layout.annotationdefaults.font })) };
    const axes = {};
    if (figure.panels) for (const name of Object.keys(figure.layout)) {
      if (/^[xy]axis/.test(name)) axes[name] = { showgrid: false, zeroline: false, automargin: false, ticks: "", fixedrange: true, tickangle: 0, tickfont: { size: 10 } };
    }
    const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page
    const inert = figure.panels ? { plot_bgcolor: colours().inert } : {};
    return merged(merged(merged(figure.layout, sizes), merged(axes, flat)), { template: look, dragmode: touch || figure.panels ? false : "zoom", width, ...inert });
  }

  // --- Drawing ---------------------------------------------------------------------------------------------------

  async function draw(place, look) {
    const figure = figures[place.id];
    place.hidden = false;
    const still = place.parentElement.querySelector(".still");
    await Plotly.newPlot(place, figure.data, layoutOf(figure, place.clientWidth, look), { displayModeBar: false });
    if (still) still.hidden = true;
    const numbers = place.parentElement.querySelector("details");
    if (numbers) numbers.open = false;
    place.dataset.width = place.clientWidth;
    place.dataset.drawn = "yes";
  }

  function redraw(places, { look = null, width = 0 } = {}) {
    for (const place of places) {
      const wide = width || place.clientWidth;
      if (!wide || (!look && Number(place.dataset.width) === wide)) continue;
      place.dataset.width = wide;
      Plotly.react(place, place.data, layoutOf(figures[place.id], wide, look || template()));
    }
  }

  // Sliders of a card that go through the same moments move together.
  function slide(input) {
    const within = input.closest("figure"), place = within.querySelector(".drawn"), output = within.querySelector("output");
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
        const key = (row) => row.cells[column].textContent.replaceAll(",", "").replaceAll("−", "-").replaceAll("∞", "Infinity");
        const order = (a, b) => parseFloat(key(a)) - parseFloat(key(b)) || key(a).localeCompare(key(b), "en", { numeric: true });
        body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
      });
    });
  }

  // What scrolls sideways has to be reached by keyboard.
  function focusable() {
    for (const box of all(".scroll")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1;
      scrolls ? box.setAttribute("tabindex", "0") : box.removeAttribute("tabindex");
      scrolls ? box.setAttribute("role", "group") : box.removeAttribute("role");
      scrolls ? box.setAttribute("aria-label", box.querySelector("caption")?.textContent || "Scrolls sideways") : box.removeAttribute("aria-label");
    }
  }

  // --- Start -----------------------------------------------------------------------------------------------------

  async function start() {
    all("table.sortable").forEach(sortable);
    focusable();
    addEventListener("resize", focusable);
    all("details").forEach((details) => details.addEventListener("toggle", focusable));
    const places = all(".drawn").filter((place) => place.id in figures);
    const dark = matchMedia("(prefers-color-scheme: dark)"), button = document.getElementById("theme");
    const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
    const themed = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      if (window.Plotly) redraw(places, { look: template() });
    };
    button.addEventListener("click", () => ((root.dataset.theme = isDark() ? "light" : "dark"), themed()));
    dark.addEventListener("change", themed);
    themed();
    button.hidden = false;
    if (places.length) {
      try {
        await loadPlotly();
        const look = template();
        for (const place of places) await draw(place, look);
        all(".slider input").filter((input) => input.dataset.figure in figures).forEach(slide);
        new ResizeObserver(() => redraw(places)).observe(document.querySelector("main"));
        addEventListener("beforeprint", () => redraw(places, { width: PAPER }));
        addEventListener("afterprint", () => redraw(places));
      } catch (error) {
        document.getElementById("no-figures").hidden = false;
      }
    }
    root.dataset.ready = "yes";
  }
  start();
})();
