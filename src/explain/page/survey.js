  // ---- The data, columns of numbers: see explain/page/mod.rs. A place is a path; place 0 is the root, which has no holdings. ----
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const TOP = data.layers.length, N = data.names.length + 1, WORDS = 8;
  const names = ["", ...data.names], words = data.holdings, targets = new Map(data.targets);
  const parent = new Int32Array(N), end = new Int32Array(N), depth = new Uint16Array(N), first = new Int32Array(N + 1);
  {
    const path = [0];
    for (let p = 1; p < N; p++) {
      depth[p] = data.depths[p - 1];
      path.length = depth[p];
      parent[p] = path[depth[p] - 1];
      path.push(p);
      first[p + 1] = first[p] + data.counts[p - 1];
    }
    for (let p = N - 1; p >= 0; p--) {
      if (end[p] < p + 1) end[p] = p + 1;
      if (p && end[parent[p]] < end[p]) end[parent[p]] = end[p];
    }
  }

  // A holding: layer, from, hidden by, replaces, kind and flags, size, mode, mtime.
  const layer = (h) => words[h * WORDS], from = (h) => words[h * WORDS + 1], hiddenBy = (h) => words[h * WORDS + 2];
  const replaces = (h) => words[h * WORDS + 3], kind = (h) => words[h * WORDS + 4] & 15, flags = (h) => words[h * WORDS + 4];
  const size = (h) => words[h * WORDS + 5];
  const OPAQUE = 16, MERGED = 32, COUNTS = 64, USED = 128, DIRECTORY = 4, FILE = 8, SYMLINK = 10;
  const KINDS = { 0: "kind.whiteout", 1: "kind.fifo", 2: "kind.character-device", 4: "kind.directory", 6: "kind.block-device", 8: "kind.file",
    10: "kind.symlink", 12: "kind.socket" };

  // ---- What is said, in the language of the page; `{name}` is filled in ----
  const say = (key, values = {}) => data.texts[key].replace(/\{([a-z_]+)\}/g, (hole, name) => Object.hasOwn(values, name) ? values[name] : hole);
  const kindOf = (h) => say(KINDS[kind(h)]);

  // Layers are numbered from 1, the lowest, here; people are told other numbers.
  const label = (number) => data.layers[number - 1].label;
  const colour = (number) => data.layers[number - 1].colour;
  const title = (number) => data.layers[number - 1].title;
  const ofLayer = (key, number) => say(key, { layer: title(number) });
  const number = (count) => count.toLocaleString("en");
  const counted = (noun, count) => say(`count.${count === 1 ? "one" : "more"}.${noun}`, { count: number(count) });

  /** What the layers 1 to `top` show at a place: a holding or -1. */
  function shownAt(p, top) {
    for (let h = first[p]; h < first[p + 1]; h++) {
      const by = hiddenBy(h);
      if (from(h) <= top && (by === 0 || by > top)) return kind(h) ? h : -1;
    }
    return -1;
  }

  // ---- What is seen with the layers 1 to `top`, or of the layer `top` alone, by place ----
  // HIDDEN: something of a layer below, which a layer deletes or replaces. ELSEWHERE: in layers that aren't looked at.
  const SAME = 1, ADDED = 2, CHANGED = 3, DELETED = 4, HIDDEN = 5, ELSEWHERE = 6;
  const state = new Uint8Array(N), topHolding = new Int32Array(N), bytes = new Float64Array(N), gone = new Float64Array(N), changes = new Int32Array(N);
  let top = TOP, alone = false;

  function lookInPile(p) {
    const now = shownAt(p, top), before = shownAt(p, top - 1);
    topHolding[p] = now >= 0 ? now : before;
    // The lowest layer is where all begins: nothing is new in it.
    if (now >= 0) return before < 0 ? (top === 1 ? SAME : ADDED) : now === before || flags(now) & MERGED ? SAME : CHANGED;
    if (before >= 0) return DELETED;
    for (let h = first[p]; h < first[p + 1]; h++) {
      if (from(h) <= top && kind(h)) { topHolding[p] = h; return HIDDEN; }
    }
    return elsewhere(p);
  }

  function lookInLayer(p) {
    for (let h = first[p]; h < first[p + 1]; h++) {
      if (layer(h) !== top || from(h) !== top) continue;
      topHolding[p] = h;
      if (!kind(h)) return DELETED;
      return top === 1 || flags(h) & MERGED ? SAME : replaces(h) ? CHANGED : ADDED;
    }
    return elsewhere(p);
  }

  function elsewhere(p) {
    topHolding[p] = first[p];
    for (let h = first[p]; h < first[p + 1]; h++) if (kind(h)) { topHolding[p] = h; break; }
    return first[p] < first[p + 1] ? ELSEWHERE : 0;
  }

  function compute() {
    bytes.fill(0);
    gone.fill(0);
    changes.fill(0);
    for (let p = N - 1; p > 0; p--) {
      const s = state[p] = alone ? lookInLayer(p) : lookInPile(p), h = topHolding[p];
      const own = s && kind(h) === FILE && flags(h) & COUNTS ? size(h) : 0;
      if (s && s < DELETED) bytes[p] += own;
      else if (!alone || s === ELSEWHERE) gone[p] += own;
      bytes[parent[p]] += bytes[p];
      gone[parent[p]] += gone[p];
      if (s > SAME && s < HIDDEN) changes[p] += 1;
      changes[parent[p]] += changes[p];
    }
  }

  const isDir = (p) => topHolding[p] >= 0 && kind(topHolding[p]) === DIRECTORY;
  /** The bytes that a row tells. */
  const told = (p) => isDir(p) ? (state[p] < DELETED ? bytes[p] : gone[p]) : kind(topHolding[p]) === FILE ? size(topHolding[p]) : 0;

  function pathOf(p) {
    const parts = [];
    for (let at = p; at; at = parent[at]) parts.push(names[at]);
    return parts.reverse().join("/");
  }

  /** As `bytes` in explain/names.rs says it. */
  function human(count) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (count >= 1024 && unit < 4) { count /= 1024; unit++; }
    return (unit ? count.toFixed(2) : count) + " " + units[unit];
  }

  function text(tag, className, content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (content !== undefined) element.textContent = content;
    return element;
  }

  /** A layer's mark: a spot of its colour, which says nothing that its number doesn't. */
  function spot(number) {
    const mark = text("i", "spot");
    mark.setAttribute("aria-hidden", "true");
    mark.style.background = colour(number);
    return mark;
  }

