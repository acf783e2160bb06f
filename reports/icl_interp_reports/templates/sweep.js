// Lets a reader ask the rows of a sweep: a quantity along one parameter or two, over the runs that the filters leave.
// It runs before the script of all pages, which calls `prepare` before it draws.
(() => {
  "use strict";
  const AT_ONCE = 50; // rows of the table
  const CURVES = 12, POINTS = 12; // curves in a figure; ticks along an axis
  const VALUES = 6; // of a column of words, to be asked for one by one
  const SEEDS = ["seed", "data_seed"], OWN = ["cell", "error"]; // columns
  const SYMBOLS = { holds: "✓", fails: "✗", inconclusive: "?", not_applicable: "–" };
  const byId = (id) => document.getElementById(id);
  let columns, runs, given, page;

  // --- The rows --------------------------------------------------------------------------------------------------

  // sweep.py says how they are packed.
  function unpack(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    given = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    runs = given.runs;
    columns = given.columns.map((column, index) => {
      const bytes = new Uint8Array(buffer, 4 + length + 4 * runs * index, 4 * runs);
      return column.words ? worded(column, bytes) : numbered(column, bytes);
    });
  }

  function numbered(column, planes) {
    const bytes = new Uint8Array(4 * runs);
    for (let i = 0; i < runs; i++) for (let k = 0; k < 4; k++) bytes[4 * i + k] = planes[k * runs + i];
    return { ...column, values: new Float32Array(bytes.buffer) };
  }

  function worded(column, bytes) {
    const places = new Uint32Array(bytes.slice().buffer);
    return { ...column, values: Array.from(places, (place) => column.words[place]) };
  }

  const named = (name) => columns.find((column) => column.name === name);
  const missing = (value) => value === "" || Number.isNaN(value);
  // Numbers that were found have four digits; parameters are as they were given.
  function short(value, digits = 4) {
    if (Math.abs(value) >= 1e6) return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(digits)));
  }
  const said = (value) => (missing(value) ? "" : typeof value === "number" ? short(value).replace("-", "−") : value.replaceAll("_", " "));
  const exactly = (value) => (typeof value === "number" ? short(value, 6).replace("-", "−") : said(value));
  const titleOf = ({ name, kind }) => (kind === "parameter" ? name : said(name)); // parameters as they are typed
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  const distinct = (column, at) => [...new Set(at.map((i) => column.values[i]))].filter((value) => !missing(value)).sort(compare);

  // --- Means, shares and their 95 % intervals ----------------------------------------------------------------------

  // Student's t; beyond the table by its expansion about the normal distribution's.
  function quantile(freedom) {
    if (freedom <= given.student.length) return given.student[freedom - 1];
    const z = 1.959964;
    return z + (z ** 3 + z) / (4 * freedom) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2);
  }

  function mean(values) {
    const n = values.length, value = values.reduce((sum, each) => sum + each, 0) / n;
    if (n < 2) return { value, low: NaN, high: NaN, n };
    const variance = values.reduce((sum, each) => sum + (each - value) ** 2, 0) / (n - 1);
    const half = quantile(n - 1) * Math.sqrt(variance / n);
    return { value, low: value - half, high: value + half, n };
  }

  // Clopper and Pearson: where the binomial's tail holds 2.5 %.
  function share(hits, n) {
    const low = hits > 0 ? root((p) => 1 - below(hits - 1, n, p) - 0.025) : 0;
    const high = hits < n ? root((p) => 0.025 - below(hits, n, p)) : 1;
    return { value: hits / n, low, high, n };
  }

  function root(rising) {
    let low = 0, high = 1;
    for (let i = 0; i < 50; i++) {
      const middle = (low + high) / 2;
      rising(middle) < 0 ? (low = middle) : (high = middle);
    }
    return (low + high) / 2;
  }

  // The chance of at most k hits in n, summed from the largest term on.
  function below(k, n, p) {
    const peak = Math.min(k, Math.floor(n * p));
    const logs = logFactorials(n);
    const largest = logs[n] - logs[peak] - logs[n - peak] + peak * Math.log(p) + (n - peak) * Math.log1p(-p);
    let sum = 0, term = 1;
    for (let j = peak; j >= 0 && term > 1e-17; j--) (sum += term), (term *= (j / (n - j + 1)) * ((1 - p) / p));
    term = 1;
    for (let j = peak + 1; j <= k && term > 1e-17; j++) (term *= ((n - j + 1) / j) * (p / (1 - p))), (sum += term);
    return Math.exp(largest) * sum;
  }

  const logs = [0];
  function logFactorials(n) {
    while (logs.length <= n) logs.push(logs[logs.length - 1] + Math.log(logs.length));
    return logs;
  }

  // --- What can be asked -----------------------------------------------------------------------------------------

  // A quantity gives a number of each run, NaN where there is none; `rate` says that it is 0 or 1.
  function quantities() {
    const found = [];
    for (const column of columns) {
      const { name, kind, words } = column;
      if (kind === "claim") {
        const value = { holds: 1, fails: 0, inconclusive: 0 };
        found.push({ column, rate: true, label: `${name} holds`, of: (i) => value[column.values[i]] ?? NaN });
      } else if (kind === "number") found.push({ column, label: name, of: (i) => column.values[i] });
      else if (kind === "word" && words.length <= VALUES + 1 && !OWN.includes(name)) {
        for (const word of words.slice(1)) {
          const of = (i) => (column.values[i] === "" ? NaN : Number(column.values[i] === word));
          found.push({ column, rate: true, label: `${name} is ${word}`, of });
        }
      }
    }
    return found;
  }

  function measured(quantity, at) {
    const values = at.map(quantity.of).filter((value) => !Number.isNaN(value));
    if (!values.length) return { value: NaN, low: NaN, high: NaN, n: 0 };
    return quantity.rate ? share(values.filter(Boolean).length, values.length) : mean(values);
  }

  const where = (column, value, at) => (column ? at.filter((i) => column.values[i] === value) : at);

  // --- Figures ---------------------------------------------------------------------------------------------------

  const titled = (quantity) => (quantity.rate ? "share of runs" : said(within(quantity.label)));

  // Numbers stand where they are, words one after the other.
  function axis(column, values, even = false) {
    const title = { text: column ? titleOf(column) : "" };
    if (!even && column && !column.words) {
      const wide = values[0] > 0 && values.at(-1) >= 16 * values[0];
      const ticks = values.length <= POINTS ? { tickvals: values, ticktext: values.map(exactly) } : {};
      return { x: values, axis: { title, type: wide ? "log" : "linear", ...ticks } };
    }
    const x = values.map((_, index) => index);
    const every = Math.ceil(values.length / POINTS), some = (list) => list.filter((_, index) => index % every === 0);
    return { x, axis: { title, tickvals: some(x), ticktext: some(values).map(exactly), type: "linear" } };
  }

  const ORDER = ["holds", "fails", "inconclusive", "not_applicable"], TONES = [2, 1, 5, 6]; // of the palette
  const toned = (word, index) => given.palette[(ORDER.includes(word) ? TONES[ORDER.indexOf(word)] : index) % given.palette.length];

  const series = (index) => ({
    color: given.palette[index % given.palette.length],
    dash: given.dashes[index % given.dashes.length],
  });

  function lines({ quantity, along, beside, at }) {
    const values = along ? distinct(along, at) : ["all runs"], placed = axis(along, values);
    const curves = beside ? distinct(beside, at).slice(0, CURVES) : [null];
    const data = curves.flatMap((curve, index) => {
      const points = values.map((value) => measured(quantity, where(along, value, where(beside, curve, at))));
      const { color, dash } = series(index), name = beside ? `${titleOf(beside)} ${exactly(curve)}` : "";
      const edge = { type: "scatter", mode: "lines", x: placed.x, line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: name };
      const text = points.map((p) => `${said(p.value)} [${said(p.low)}, ${said(p.high)}], ${p.n} runs`);
      return [
        { ...edge, y: points.map((p) => p.low) },
        { ...edge, y: points.map((p) => p.high), fill: "tonexty", fillcolor: `${color}33` },
        {
          type: "scatter", mode: "lines+markers", x: placed.x, y: points.map((p) => p.value), name, legendgroup: name, text,
          line: { color, dash, width: 2 }, hovertemplate: "%{text}",
        },
      ];
    });
    const layout = { xaxis: placed.axis, yaxis: { title: { text: titled(quantity) } }, hovermode: "x unified", showlegend: curves.length > 1 };
    return { data, layout };
  }

  function heat({ quantity, along, beside, at }) {
    if (!along || !beside) return null;
    const across = distinct(along, at), down = distinct(beside, at);
    const cells = down.map((row) => across.map((column) => measured(quantity, where(along, column, where(beside, row, at)))));
    const z = cells.map((row) => row.map((cell) => (cell.n ? cell.value : null)));
    const known = z.flat().filter((value) => value !== null);
    if (!known.length) return null;
    const low = quantity.rate ? 0 : Math.min(...known), high = quantity.rate ? 1 : Math.max(...known);
    const reach = Math.max(-low, high), mixed = low < 0 && high > 0;
    const text = cells.map((row) => row.map((p) => `${said(p.value)} [${said(p.low)}, ${said(p.high)}], ${p.n} runs`));
    const names = [titleOf(along), titleOf(beside)];
    const ticks = (values) => ({ tickvals: values.map((_, index) => index), ticktext: values.map(exactly) });
    return {
      data: [{
        type: "heatmap", z, text, coloraxis: "coloraxis",
        hovertemplate: `${names[0]} %{x}, ${names[1]} %{y}: %{text}<extra></extra>`,
      }],
      layout: {
        coloraxis: mixed ? { cmin: -reach, cmax: reach } : { cmin: low, cmax: high },
        xaxis: { anchor: "y", ...ticks(across) }, yaxis: { anchor: "x", ...ticks(down) },
        annotations: [{
          text: `${names[0]} →, ${names[1]} ↑`, xref: "x domain", yref: "y domain", x: 0, y: 1,
          xanchor: "left", yanchor: "bottom", showarrow: false,
        }],
      },
      panels: [1, down.length, across.length],
      oneSided: !mixed,
    };
  }

  const fewValued = ({ rate, column }, at) => rate || distinct(column, at).length <= VALUES;

  // Of numbers boxes; of words, and of counts, how many runs have which.
  function spread({ quantity, along, beside, at }) {
    const values = along ? distinct(along, at) : ["all runs"], placed = axis(along, values, true);
    const layout = { xaxis: placed.axis, showlegend: true };
    if (fewValued(quantity, at)) {
      const { column } = quantity;
      const words = distinct(column, at).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
      const data = words.map((word, index) => ({
        type: "bar", name: said(word), x: placed.x, marker: { color: toned(word, index) },
        y: values.map((value) => {
          const members = where(along, value, at).filter((i) => !missing(column.values[i]));
          return members.length ? members.filter((i) => column.values[i] === word).length / members.length : null;
        }),
        hovertemplate: "%{y:.1%}",
      }));
      return { data, layout: { ...layout, barmode: "stack", hovermode: "x unified", yaxis: { title: { text: "share of runs" } } } };
    }
    const groups = beside ? distinct(beside, at).slice(0, CURVES) : [null];
    const data = groups.map((group, index) => {
      const members = where(beside, group, at).filter((i) => !Number.isNaN(quantity.of(i)));
      const color = series(index).color, name = beside ? `${titleOf(beside)} ${exactly(group)}` : "";
      const x = members.map((i) => (along ? values.indexOf(along.values[i]) : 0));
      return {
        type: "box", name, x, y: members.map(quantity.of), marker: { color, size: 3 }, line: { width: 1.5 },
        boxpoints: "outliers", hoverinfo: "y",
      };
    });
    return { data, layout: { ...layout, showlegend: groups.length > 1, boxmode: "group", yaxis: { title: { text: titled(quantity) } } } };
  }

  const FIGURES = { lines, heat, spread };
  const CAPTIONS = {
    lines: (asked) => `${asked.quantity.rate ? "Share of runs" : "Mean over runs"} with its 95 % interval (${asked.quantity.rate ? "Clopper and Pearson" : "Student's t"}).`,
    heat: () => "The same over both parameters.",
    spread: (asked) => (fewValued(asked.quantity, asked.at) ? "How the runs divide." : "How runs are spread: median, quartiles and outliers."),
  };

  function asked() {
    const along = named(byId("along").value), beside = named(byId("beside").value);
    const at = filtered();
    return { quantity: known[byId("what").value], along, beside: beside === along ? undefined : beside, at };
  }

  function ask() {
    const question = asked(), { quantity, along, beside, at } = question;
    for (const [id, make] of Object.entries(FIGURES)) {
      const figure = at.length ? make(question) : null;
      if (figure) page.figures[id] = figure;
      else delete page.figures[id];
      const over = along ? ` Along ${titleOf(along)}${beside ? `, by ${titleOf(beside)}` : ""}.` : "";
      byId(`${id}-caption`).textContent = `${said(quantity.label)}. ${CAPTIONS[id](question)}${over}`;
      byId(id).parentElement.hidden = !figure;
      if (page.started) page.renew(byId(id));
    }
    byId("asked").textContent = along && beside && distinct(beside, at).length > CURVES ? `The first ${CURVES} values of ${titleOf(beside)} are drawn.` : "";
  }

  // --- The table -------------------------------------------------------------------------------------------------

  const table = { shown: [], more: [], filters: new Map(), sorted: null, down: false, from: 0 };
  let known = [];

  function passes(filter, value) {
    const range = filter.match(/^\s*(-?[\d.eE+-]+)\s*\.\.\s*(-?[\d.eE+-]+)\s*$/), bound = filter.match(/^\s*([<>]=?|=)?\s*(-?[\d.]+(?:e[+-]?\d+)?)\s*$/i);
    if (typeof value !== "number") return value.replaceAll("_", " ").toLowerCase().includes(filter.trim().replaceAll("_", " ").toLowerCase());
    if (range) return value >= range[1] && value <= range[2];
    if (!bound) return false;
    const [, sign = "=", text] = bound, limit = Number(text), near = Math.abs(value - limit) <= 5e-4 * Math.abs(limit);
    return { "<": value < limit, ">": value > limit, "<=": value <= limit || near, ">=": value >= limit || near, "=": near }[sign];
  }

  function filtered() {
    const asked = [...table.filters].filter(([, filter]) => filter.trim());
    const all = Array.from({ length: runs }, (_, i) => i);
    return all.filter((i) => asked.every(([column, filter]) => passes(filter, column.values[i])));
  }

  const order = (column) => (i, j) => {
    const a = column.values[i], b = column.values[j];
    return missing(a) - missing(b) || (missing(a) ? 0 : table.down ? compare(b, a) : compare(a, b)) || i - j;
  };

  function element(kind, content = "", attributes = {}) {
    const made = document.createElement(kind);
    made.append(content);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function heading() {
    const names = element("tr"), filters = element("tr");
    for (const column of table.shown) {
      const sort = element("button", titleOf(column), { type: "button" });
      sort.addEventListener("click", () => {
        table.down = table.sorted === column && !table.down;
        table.sorted = column;
        table.from = 0;
        heading();
        fill();
      });
      const direction = table.sorted === column ? { "aria-sort": table.down ? "descending" : "ascending" } : {};
      names.append(element("th", sort, { scope: "col", ...(column.words ? {} : { class: "right" }), ...direction }));
      const input = element("input", "", { type: "search", "aria-label": `Filter ${titleOf(column)}`, size: column.words ? 10 : 5 });
      input.value = table.filters.get(column) ?? "";
      input.addEventListener("input", () => (table.filters.set(column, input.value), soon()));
      filters.append(element("td", input, column.words ? {} : { class: "right" }));
    }
    page.all("#runs thead")[0].replaceChildren(names, filters);
  }

  let waiting = 0;
  function soon() {
    clearTimeout(waiting);
    waiting = setTimeout(() => ((table.from = 0), fill(), ask()), 150);
  }

  function fill() {
    const at = filtered();
    if (table.sorted) at.sort(order(table.sorted));
    table.from = Math.max(0, Math.min(table.from, at.length - 1));
    const rows = at.slice(table.from, table.from + AT_ONCE).map((i) => {
      const row = element("tr");
      row.append(...table.shown.map((column) => element("td", cell(column, i), column.words ? {} : { class: "right" })));
      return row;
    });
    page.all("#runs tbody")[0].replaceChildren(...rows);
    const last = Math.min(table.from + AT_ONCE, at.length), all = runs.toLocaleString("en");
    byId("left").textContent = at.length ? `${(table.from + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${at.length.toLocaleString("en")} runs${at.length < runs ? ` (${all} in all)` : ""}` : `None of ${all} runs`;
    byId("before").disabled = !table.from;
    byId("after").disabled = last >= at.length;
  }

  function cell(column, i) {
    const value = column.values[i];
    if (column.name === "cell" && given.reports[value]) return element("a", value, { href: given.reports[value] });
    if (column.kind === "claim" && value in SYMBOLS) return element("span", `${SYMBOLS[value]} ${said(value)}`, { class: `status ${value}` });
    return column.kind === "parameter" ? exactly(value) : said(value);
  }

  // --- Start -----------------------------------------------------------------------------------------------------

  function options(select, choices, empty) {
    const groups = new Map();
    if (empty) select.append(element("option", empty, { value: "" }));
    for (const { value, label, group } of choices) {
      if (group && !groups.has(group)) {
        groups.set(group, element("optgroup", "", { label: said(group) }));
        select.append(groups.get(group));
      }
      (groups.get(group) ?? select).append(element("option", label, { value }));
    }
  }

  const probe = (name) => (name.includes(".") ? name.split(".")[0] : "");
  const within = (name) => (name.includes(".") ? name.slice(name.indexOf(".") + 1) : name);

  // Runs, what differs between them, whether they failed; and what is asked.
  function chosen() {
    const own = columns.filter(({ name, kind }) => kind === "parameter" || OWN.includes(name));
    return [...new Set([...own, known[byId("what").value]?.column, ...table.more])].filter(Boolean);
  }

  function showColumns() {
    table.shown = chosen();
    heading();
    fill();
  }

  async function prepare(given) {
    page = given;
    unpack(await page.inflated(byId("rows")).arrayBuffer());
    known = quantities();
    const parameters = columns.filter(({ kind }) => kind === "parameter").map(({ name }) => ({ value: name, label: name }));
    options(byId("what"), known.map(({ column, label }, value) => ({ value, label: said(within(label)), group: probe(column.name) })));
    options(byId("along"), parameters, "all runs");
    options(byId("beside"), parameters, "nothing else");
    const others = columns.filter(({ kind, name }) => kind !== "parameter" && !OWN.includes(name));
    options(byId("more"), others.map(({ name }) => ({ value: name, label: said(within(name)), group: probe(name) })), "choose …");
    const [first, second] = parameters.filter(({ value }) => !SEEDS.includes(value));
    byId("along").value = first?.value ?? "";
    byId("beside").value = second?.value ?? "";
    if (known.length) {
      for (const id of ["what", "along", "beside"]) byId(id).addEventListener("change", () => (ask(), showColumns()));
      byId("ask").hidden = false;
      ask();
    }
    byId("more").addEventListener("change", () => {
      table.more.push(named(byId("more").value));
      byId("more").value = "";
      showColumns();
    });
    byId("clear").addEventListener("click", () => (table.filters.clear(), heading(), soon()));
    byId("before").addEventListener("click", () => ((table.from -= AT_ONCE), fill()));
    byId("after").addEventListener("click", () => ((table.from += AT_ONCE), fill()));
    page.all(".controls").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
    byId("runs").hidden = false;
    table.more = columns.filter(({ kind, name }) => kind === "word" && !OWN.includes(name)).slice(0, 1);
    showColumns();
    page.started = true;
  }

  window.prepare = prepare;
})();
