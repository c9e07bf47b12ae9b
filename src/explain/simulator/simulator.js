"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const dir = { kind: "dir" }, file = (text) => ({ kind: "file", text });
  const NAMES = ["", "patch", "app", "base"];
  const LANGUAGES = JSON.parse($("texts").textContent);
  let texts = LANGUAGES.en;
  const say = (key, values = {}) => texts[key].replace(/\{([a-z_]+)\}/g, (hole, name) => Object.hasOwn(values, name) ? values[name] : hole);
  const layerOf = (number) => number ? say("called.one", { numbers: number }) : say("called.upper");
  const sentence = ({ key, values }) => say(`simulator.said.${key}`, { ...values, layer: layerOf(values.layer),
    layers: (values.layers || []).map(layerOf).join(say("called.comma")) });
  const begin = () => new Union([
    { etc: dir, "etc/app.conf": file("port = 8080") },
    { etc: dir, "etc/app.conf": file("port = 80"), srv: dir, "srv/site": dir, "srv/site/index": file("hello") },
    { etc: dir, "etc/os": file("debian"), "etc/motd": file("Welcome"), srv: dir, "srv/site": dir, "srv/site/logo": file("(o)") },
  ]);
  const LESSON = [
    { op: "read", path: "etc/app.conf" },
    { op: "append", path: "etc/motd", other: " to the union" },
    { op: "unlink", path: "etc/os" },
    { op: "list", path: "srv/site" },
    { op: "rename", path: "srv/site", other: "srv/web" },
    { op: "mkdir", path: "srv/site" },
    null,
  ];
  let union = begin(), before = [], step = 0;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function entry(path, words, className) {
    const item = element("li", "entry " + className);
    item.append(element("b", "", path));
    if (words) item.append(element("small", "", words));
    return item;
  }

  /** Which entries of the layers the merged view is made of. */
  function seen() {
    const seen = new Set();
    const visit = (dirs) => {
      for (const name of union.names(dirs)) {
        const found = union.look(dirs, name);
        if (found.kind === "file") seen.add(found.layer + ":" + found.path);
        else { for (const d of found.dirs) seen.add(d.layer + ":" + d.path); visit(found.dirs); }
      }
    };
    visit(union.root());
    return seen;
  }

  function band(className, title, sub, items) {
    const row = element("li", className), head = element("h3", "", title), list = element("ul");
    head.append(element("small", "", sub));
    list.append(...(items.length ? items : [element("li", "nothing", say("simulator.nothing"))]));
    row.append(head, list);
    return row;
  }

  function draw() {
    const view = union.view(), shown = seen(), rows = [];
    const merged = Object.entries(view).map(([path, text]) => entry(text === null ? path + "/" : path, text === null ? "" : text, ""));
    rows.push(band("merged", say("simulator.merged"), say("simulator.seen"), merged));
    union.layers.forEach((layer, number) => {
      const paths = [...layer].sort(([a], [b]) => a < b ? -1 : 1);
      const items = paths.map(([path, is]) => {
        if (is.kind === "whiteout") return entry(path, say("kind.whiteout"), "deleted");
        const hidden = !shown.has(number + ":" + path);
        const words = [is.kind === "file" ? is.text : "", is.opaque ? say("simulator.opaque") : "",
          is.redirect !== undefined ? say("simulator.redirect", { to: is.redirect }) : "", hidden ? say("simulator.hidden") : ""];
        const replaces = number === 0 && union.layers.slice(1).some((lower) => lower.has(path) && lower.get(path).kind === "file");
        const look = hidden ? "hidden" : number || is.kind === "dir" && !is.opaque && is.redirect === undefined ? "" : replaces || is.opaque || is.redirect !== undefined ? "changed" : "added";
        return entry(is.kind === "dir" ? path + "/" : path, words.filter(Boolean).join(" · "), look);
      });
      rows.push(band("", number ? number + " " + NAMES[number] : say("explain.upper"), say(number ? "simulator.read_only" : "simulator.writable"), items));
    });
    $("stack").replaceChildren(...rows);
    $("paths").replaceChildren(...Object.keys(view).map((path) => { const option = element("option"); option.value = path; return option; }));
    $("undo").disabled = !before.length;
  }

  const quoted = (text) => "'" + (text || "").replaceAll("'", "'\\''") + "'";
  function command({ op, path, other }) {
    const at = "mnt/" + path;
    return { read: "cat " + at, write: "echo " + quoted(other) + " > " + at, append: "echo " + quoted(other) + " >> " + at, mkdir: "mkdir " + at,
      unlink: "rm " + at, rmdir: "rmdir " + at, rename: "mv -T " + at + " mnt/" + other, list: "ls " + at }[op];
  }

  /** All that was done since the beginning, the newest last, as it is shown in every language. */
  let done = [];
  function drawLog() {
    $("log").replaceChildren(...done.map(({ operation, did }) => {
      const item = element("li", did.error ? "failed" : "");
      item.append(element("code", "", "$ " + command(operation)));
      if (did.error) item.append(element("span", "", did.error + say("page.colon") + say(`simulator.error.${did.error}`)));
      if (did.answer !== null) item.append(element("code", "", Array.isArray(did.answer) ? did.answer.join("  ") || say("simulator.empty") : did.answer));
      for (const line of did.said) item.append(element("span", "", sentence(line)));
      return item;
    }).reverse());
  }

  function perform(operation) {
    const kept = union.copy(), did = union.do(operation);
    if (!did.error) before.push(kept);
    done.push({ operation, did });
    drawLog();
    draw();
  }

  function clean(path) { return path.split("/").filter((part) => part && part !== ".").join("/"); }
  function fields() {
    const op = $("operation").value, word = { write: "simulator.text", append: "simulator.text", rename: "simulator.new_path" }[op];
    $("other-label").hidden = !word;
    $("other-label").style.display = word ? "" : "none";
    $("other-word").textContent = say(word || "simulator.text");
  }
  $("operation").addEventListener("change", fields);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const op = $("operation").value, other = $("other").value;
    perform({ op, path: clean($("path").value), other: op === "rename" ? clean(other) : other });
  });
  $("undo").addEventListener("click", () => { union = before.pop(); done.splice(done.findLastIndex(({ did }) => !did.error), 1); drawLog(); draw(); });
  $("again").addEventListener("click", () => { union = begin(); before = []; done = []; drawLog(); go(0); draw(); });

  function lessonText() {
    const at = step + 1;
    $("lesson-title").textContent = at + ". " + say(`simulator.titles.${at}`);
    $("lesson-text").textContent = say(`simulator.steps.${at}`);
  }

  function go(to) {
    step = Math.max(0, Math.min(LESSON.length - 1, to));
    const operation = LESSON[step];
    lessonText();
    $("show").disabled = !operation;
    $("back").disabled = step === 0;
    $("next").disabled = step === LESSON.length - 1;
    if (operation) {
      $("operation").value = operation.op;
      $("path").value = operation.path;
      if (operation.other) $("other").value = operation.other;
      fields();
    }
  }
  $("show").addEventListener("click", () => perform(LESSON[step]));
  $("next").addEventListener("click", () => go(step + 1));
  $("back").addEventListener("click", () => go(step - 1));

  /** Says everything in a language. */
  function speak(code) {
    texts = LANGUAGES[code];
    document.documentElement.lang = code;
    document.title = say("simulator.title");
    for (const item of document.querySelectorAll("[data-say]")) item.textContent = say(item.dataset.say);
    for (const item of document.querySelectorAll("[data-label]")) item.setAttribute("aria-label", say(item.dataset.label));
    $("language").value = code;
    fields();
    lessonText();
    drawLog();
    draw();
  }
  for (const [code, known] of Object.entries(LANGUAGES)) {
    const option = element("option", "", known.language);
    option.value = code;
    option.lang = code;
    $("language").append(option);
  }
  $("language").addEventListener("change", () => speak($("language").value));
  const dark = matchMedia("(prefers-color-scheme: dark)"), paint = () => { document.documentElement.dataset.theme = dark.matches ? "dark" : "light"; };
  dark.addEventListener("change", paint);
  paint();
  go(0);
  // That of the address (#zh), else the reader's.
  const wanted = [location.hash.slice(1), ...navigator.languages].map((name) => name.split("-")[0]);
  speak(wanted.find((code) => Object.hasOwn(LANGUAGES, code)) || "en");
  document.documentElement.dataset.ready = "yes";
})();
