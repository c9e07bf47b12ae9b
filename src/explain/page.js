"use strict";
// The data are columns of numbers, see explain/page.rs. A place is a path; place 0 is the root, which has no holdings.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const TOP = data.layers.length, N = data.names.length + 1, WORDS = 8;
  const names = ["", ...data.names], words = data.holdings;
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
  const OPAQUE = 16, MERGED = 32, COUNTS = 64, DIRECTORY = 4, FILE = 8;
  const KINDS = { 0: "whiteout", 1: "fifo", 2: "character device", 4: "directory", 6: "block device", 8: "file", 10: "symlink", 12: "socket" };

  // Layers are numbered from 1, the lowest, here; people are told other numbers.
  const label = (number) => data.layers[number - 1].label;
  const title = (number) => label(number) === "upper" ? "the upper" : "layer " + label(number);

  /** What the layers 1 to `top` show at a place: a holding or -1. */
  function shownAt(p, top) {
    for (let h = first[p]; h < first[p + 1]; h++) {
      const by = hiddenBy(h);
      if (from(h) <= top && (by === 0 || by > top)) return kind(h) ? h : -1;
    }
    return -1;
  }

  // ---- What is seen with the layers 1 to `top`, by place ----
  const SAME = 1, ADDED = 2, CHANGED = 3, DELETED = 4;
  const state = new Uint8Array(N), topHolding = new Int32Array(N), bytes = new Float64Array(N), changes = new Int32Array(N);
  let top = TOP;
  function compute() {
    bytes.fill(0);
    changes.fill(0);
    for (let p = N - 1; p > 0; p--) {
      const now = shownAt(p, top), before = shownAt(p, top - 1);
      let s = 0;
      if (now >= 0) {
        // The lowest layer is where all begins: nothing is new in it.
        if (before < 0) s = top === 1 ? SAME : ADDED;
        else if (now === before) s = SAME;
        else s = flags(now) & MERGED ? SAME : CHANGED;
        if (kind(now) === FILE && flags(now) & COUNTS) bytes[p] += size(now);
        bytes[parent[p]] += bytes[p];
      } else if (before >= 0) {
        s = DELETED;
      }
      state[p] = s;
      topHolding[p] = now >= 0 ? now : before;
      if (s > SAME) changes[p] += 1;
      changes[parent[p]] += changes[p];
    }
  }

  // ---- Which rows there are ----
  const open = new Uint8Array(N), keep = new Uint8Array(N), position = new Int32Array(N), siblings = new Int32Array(N);
  const isDir = (p) => topHolding[p] >= 0 && kind(topHolding[p]) === DIRECTORY;
  let rows = new Int32Array(0), rowOf = new Int32Array(N), query = "", wanted = [true, true, true, true, true], lower = null, matches = 0;
  let searching = false, filtered = false;
  open[0] = 1;

  function pathOf(p) {
    const parts = [];
    for (let at = p; at; at = parent[at]) parts.push(names[at]);
    return parts.reverse().join("/");
  }

  function select() {
    searching = query !== "";
    filtered = searching || wanted.includes(false);
    matches = 0;
    if (!filtered) return;
    keep.fill(0);
    if (searching && !lower) lower = names.map((name) => name.toLowerCase());
    const paths = query.includes("/") ? new Array(N).fill("") : null;
    if (paths) for (let p = 1; p < N; p++) paths[p] = paths[parent[p]] + "/" + lower[p];
    for (let p = 1; p < N; p++) {
      if (!state[p] || !wanted[state[p]]) continue;
      if (searching && !(paths ? paths[p] : lower[p]).includes(query)) continue;
      // A directory that is merely there is kept for what is in it.
      if (!searching && isDir(p) && state[p] === SAME) continue;
      keep[p] = 1;
      matches++;
    }
    for (let p = N - 1; p > 0; p--) if (keep[p]) keep[parent[p]] = 1;
  }

  function flatten() {
    const list = [];
    siblings.fill(0);
    rowOf.fill(-1);
    let p = 1;
    while (p < N) {
      if (!state[p] || (filtered && !keep[p])) { p = end[p]; continue; }
      position[p] = ++siblings[parent[p]];
      rowOf[p] = list.length;
      list.push(p);
      p = open[p] || searching ? p + 1 : end[p];
    }
    rows = list;
  }

  // ---- The tree: only the rows in sight are elements ----
  const tree = $("tree"), holder = $("rows");
  let rowHeight = 26, cursor = 0, pool = [];

  function text(tag, className, content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (content !== undefined) element.textContent = content;
    return element;
  }

  function makeRow() {
    const row = text("div", "row");
    row.setAttribute("role", "treeitem");
    row.append(text("span", "sign"), text("span", "twist"), text("span", "name"), text("span", "count"), text("span", "size"), text("span", "chip"));
    row.children[0].setAttribute("aria-hidden", "true");
    row.children[1].setAttribute("aria-hidden", "true");
    holder.append(row);
    return row;
  }

  const SIGNS = ["", "", "+", "~", "−"], STATES = ["", "", "added", "changed", "deleted"];
  function fillRow(row, p, index) {
    const h = topHolding[p], dir = isDir(p), s = state[p];
    row.hidden = false;
    row.id = "place-" + p;
    row.dataset.place = p;
    row.className = "row s" + s + (dir ? " dir" : "");
    row.style.top = index * rowHeight + "px";
    row.setAttribute("aria-level", depth[p]);
    row.setAttribute("aria-posinset", position[p]);
    row.setAttribute("aria-setsize", siblings[parent[p]]);
    row.setAttribute("aria-selected", p === cursor ? "true" : "false");
    const unfolded = open[p] || searching;
    if (dir) row.setAttribute("aria-expanded", unfolded ? "true" : "false");
    else row.removeAttribute("aria-expanded");
    const [sign, twist, name, count, bytesOf, chip] = row.children;
    sign.textContent = SIGNS[s];
    sign.style.marginLeft = Math.min(depth[p] - 1, 40) * 16 + "px";
    twist.textContent = dir ? (unfolded ? "▾" : "▸") : "";
    name.textContent = names[p] + (dir ? "/" : "");
    name.title = names[p];
    const inside = changes[p] - (s > SAME ? 1 : 0);
    count.textContent = dir && inside ? inside.toLocaleString("en") + (inside === 1 ? " change" : " changes") : "";
    bytesOf.textContent = kind(h) === FILE ? human(size(h)) : dir && s !== DELETED ? human(bytes[p]) : "";
    chip.textContent = label(layer(h));
    chip.title = title(layer(h)) + ": " + data.layers[layer(h) - 1].name;
    row.setAttribute("aria-label", [names[p], STATES[s], dir ? "directory" : KINDS[kind(h)], bytesOf.textContent,
      count.textContent, (s === DELETED ? "was in " : "") + title(layer(h))].filter(Boolean).join(", "));
  }

  function paint() {
    const from = Math.max(0, Math.floor(tree.scrollTop / rowHeight) - 8);
    const until = Math.min(rows.length, Math.ceil((tree.scrollTop + tree.clientHeight) / rowHeight) + 8);
    while (pool.length < until - from) pool.push(makeRow());
    for (let i = 0; i < pool.length; i++) {
      if (from + i < until) fillRow(pool[i], rows[from + i], from + i);
      else { pool[i].hidden = true; pool[i].removeAttribute("id"); }
    }
    const active = rowOf[cursor];
    if (cursor && active >= from && active < until) tree.setAttribute("aria-activedescendant", "place-" + cursor);
    else tree.removeAttribute("aria-activedescendant");
  }

  function refresh() {
    flatten();
    holder.style.height = rows.length * rowHeight + "px";
    paint();
    const shown = rows.length.toLocaleString("en") + (rows.length === 1 ? " row" : " rows");
    $("found").textContent = searching ? matches.toLocaleString("en") + (matches === 1 ? " match" : " matches")
      : rows.length ? shown : "Nothing to show with these filters.";
  }

  function all() { compute(); select(); refresh(); bands(); history(cursor); }

  function reveal(p) {
    for (let at = parent[p]; at; at = parent[at]) open[at] = 1;
    if (rowOf[p] < 0) { flatten(); holder.style.height = rows.length * rowHeight + "px"; }
  }

  function moveTo(p, quietly) {
    cursor = p;
    const at = rowOf[p];
    if (at >= 0) {
      const y = at * rowHeight;
      if (y < tree.scrollTop) tree.scrollTop = y;
      else if (y + rowHeight > tree.scrollTop + tree.clientHeight) tree.scrollTop = y + rowHeight - tree.clientHeight;
    }
    paint();
    if (!quietly) history(p);
  }

  function toggle(p, to) {
    if (!isDir(p) || searching) return;
    open[p] = to === undefined ? 1 - open[p] : to;
    refresh();
  }

  holder.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    const p = Number(row.dataset.place);
    if (isDir(p) && (event.target.classList.contains("twist") || p === cursor)) toggle(p);
    moveTo(p);
  });
  holder.addEventListener("dblclick", (event) => event.preventDefault());
  tree.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  tree.addEventListener("focus", () => { if (!cursor && rows.length) moveTo(rows[0]); });
  new ResizeObserver(() => measure()).observe(tree);
  function measure() {
    rowHeight = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row")) || 26;
    holder.style.height = rows.length * rowHeight + "px";
    paint();
  }

  let typed = "", typedAt = 0;
  tree.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !rows.length) return;
    const at = Math.max(0, rowOf[cursor]), p = rows[at], page = Math.max(1, Math.floor(tree.clientHeight / rowHeight) - 1);
    const go = (index) => moveTo(rows[Math.min(rows.length - 1, Math.max(0, index))]);
    switch (event.key) {
      case "ArrowDown": go(rowOf[cursor] < 0 ? 0 : at + 1); break;
      case "ArrowUp": go(at - 1); break;
      case "PageDown": go(at + page); break;
      case "PageUp": go(at - page); break;
      case "Home": go(0); break;
      case "End": go(rows.length - 1); break;
      case "ArrowRight":
        if (isDir(p) && !open[p] && !searching) toggle(p, 1);
        else if (at + 1 < rows.length && parent[rows[at + 1]] === p) go(at + 1);
        break;
      case "ArrowLeft":
        if (isDir(p) && open[p] && !searching) toggle(p, 0);
        else if (parent[p]) moveTo(parent[p]);
        break;
      case "Enter": case " ": toggle(p); history(p); break;
      case "*":
        for (let q = p, to = end[parent[p]]; q < to; q = end[q]) open[q] = 1;
        refresh();
        break;
      default:
        if (event.key.length !== 1 || event.key === "/") return;
        typed = event.timeStamp - typedAt > 700 ? event.key.toLowerCase() : typed + event.key.toLowerCase();
        typedAt = event.timeStamp;
        for (let i = 0; i < rows.length; i++) {
          const index = (at + (typed.length > 1 ? 0 : 1) + i) % rows.length;
          if (names[rows[index]].toLowerCase().startsWith(typed)) { go(index); break; }
        }
    }
    event.preventDefault();
  });

  // ---- Search, filter, fold ----
  let timer = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      query = $("search").value.trim().toLowerCase();
      tree.scrollTop = 0;
      select();
      refresh();
    }, N > 20000 ? 150 : 0);
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { $("search").value = ""; query = ""; select(); refresh(); }
    if (event.key === "ArrowDown") { tree.focus(); if (rows.length) moveTo(rows[0]); event.preventDefault(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== $("search") && !event.ctrlKey && !event.altKey && !event.metaKey) {
      showTab("tree");
      $("search").focus();
      event.preventDefault();
    }
  });
  $("filter").addEventListener("change", (event) => {
    wanted[Number(event.target.value)] = event.target.checked;
    select();
    refresh();
  });
  function foldAll(to) {
    for (let p = 1; p < N; p++) open[p] = to;
    refresh();
    if (cursor && rowOf[cursor] < 0) cursor = 0;
    paint();
  }
  $("unfold").addEventListener("click", () => foldAll(1));
  $("fold").addEventListener("click", () => foldAll(0));

  // ---- The pile and the slider ----
  const slider = $("slider");
  slider.max = TOP;
  slider.value = TOP;
  const most = Math.max(1, ...data.layers.map((l) => l.bytes));
  data.layers.forEach((l, index) => {
    const item = document.createElement("li"), button = text("button");
    button.type = "button";
    button.append(text("b", "", l.label === l.name ? l.name : l.label + "  " + l.name));
    const did = [[l.added, "added"], [l.changed, "changed"], [l.deleted, "deleted"]].filter((d) => d[0]);
    button.append(text("small", "", human(l.bytes) + (l.wasted ? ", " + human(l.wasted) + " wasted" : "") +
      (did.length ? " · " + did.map((d) => d[0].toLocaleString("en") + " " + d[1]).join(", ") : "")));
    const meter = text("span", "meter"), used = text("i", "used"), wasted = text("i", "wasted");
    used.style.width = (l.bytes - l.wasted) / most * 100 + "%";
    wasted.style.width = l.wasted / most * 100 + "%";
    meter.append(used, wasted);
    button.append(meter);
    button.title = l.path;
    button.addEventListener("click", () => seeUpTo(index + 1));
    item.append(button);
    $("bands").prepend(item);
  });
  function bands() {
    [...$("bands").children].forEach((item, index) => {
      const number = TOP - index, button = item.firstChild;
      button.setAttribute("aria-pressed", number === top ? "true" : "false");
      button.classList.toggle("out", number > top);
    });
    const name = data.layers[top - 1].name;
    const words = top === TOP ? "all " + TOP + " layers: the merged view" : title(top) + (top === 1 ? " alone: " : " and those below it: ") + name;
    $("seen").textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }
  function seeUpTo(number) {
    if (number === top) return;
    top = number;
    slider.value = number;
    all();
  }
  slider.addEventListener("input", () => seeUpTo(Number(slider.value)));

  // ---- The history of a place ----
  function human(count) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (count >= 1024 && unit < 4) { count /= 1024; unit++; }
    return (unit ? count.toFixed(count < 10 ? 2 : count < 100 ? 1 : 0) : count) + " " + units[unit];
  }
  function modeOf(mode) { return mode.toString(8).padStart(4, "0"); }
  function history(p) {
    if (!p) return;
    const list = document.createElement("ol");
    for (let h = first[p]; h < first[p + 1]; h++) {
      const number = layer(h), item = document.createElement("li"), by = hiddenBy(h), k = kind(h);
      const seen = from(h) <= top && (by === 0 || by > top);
      const merged = flags(h) & MERGED;
      const did = !k ? "deleted" : merged ? "" : replaces(h) ? "changed" : "added";
      item.className = did + (seen && k ? " shown" : "") + (by && by <= top ? " hidden" : "");
      item.append(text("b", "", title(number).replace(/^./, (c) => c.toUpperCase()) + ": " + data.layers[number - 1].name));
      const what = [];
      if (!k) what.push(replaces(h) ? "a whiteout: deletes what " + title(replaces(h)) + " has" : "a whiteout that deletes nothing");
      else {
        what.push(KINDS[k] + (k === FILE ? " of " + human(size(h)) : "") + ", mode " + modeOf(words[h * WORDS + 6]) +
          ", " + new Date((words[h * WORDS + 7] + data.epoch) * 1000).toISOString().slice(0, 16).replace("T", " "));
        if (flags(h) & OPAQUE) what.push("opaque: nothing of the layers below is seen in it");
        else if (merged) what.push("merged with the directory of " + title(replaces(h)));
        else if (replaces(h)) what.push("replaces what " + title(replaces(h)) + " has");
      }
      if (from(h) !== number) what.push("seen here from " + title(from(h)) + " on, which has renamed it");
      if (number > top) what.push("above the layers seen");
      else if (by && by <= top) what.push("hidden by " + title(by));
      else if (k) what.push("seen");
      for (const line of what) item.append(text("span", "", line), document.createElement("br"));
      item.lastChild.remove();
      list.append(item);
    }
    const head = text("p"), code = text("code", "", "/" + pathOf(p));
    head.append(code);
    $("history").replaceChildren(head, list);
  }

  // ---- Tabs, waste, theme ----
  const tabs = ["tree", "waste", "picture"];
  function showTab(name) {
    for (const tab of tabs) {
      const chosen = tab === name, button = $("tab-" + tab);
      button.setAttribute("aria-selected", chosen ? "true" : "false");
      button.tabIndex = chosen ? 0 : -1;
      $("view-" + tab).hidden = !chosen;
    }
  }
  tabs.forEach((tab, index) => {
    $("tab-" + tab).addEventListener("click", () => showTab(tab));
    $("tab-" + tab).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: tabs.length - 1 }[event.key];
      if (!step) return;
      const next = tabs[(index + step) % tabs.length];
      showTab(next);
      $("tab-" + next).focus();
    });
  });
  $("waste-caption").textContent = data.sentence + "." + (data.unreadable ? " Directories that could not be read: " + data.unreadable + "." : "");
  for (const [p, steps, lost, files, replaced] of data.wastes) {
    const row = document.createElement("tr"), cell = document.createElement("td"), button = text("button", "", "/" + pathOf(p));
    button.type = "button";
    button.addEventListener("click", () => {
      $("search").value = query = "";
      document.querySelectorAll("#filter input").forEach((box) => { box.checked = true; wanted[Number(box.value)] = true; });
      // What is deleted is seen as such with the layer that deletes it on top.
      const goal = replaced ? TOP : steps[0][1];
      if (goal !== top) { top = goal; slider.value = goal; compute(); bands(); }
      select();
      showTab("tree");
      reveal(p);
      refresh();
      tree.focus();
      moveTo(p);
    });
    cell.append(button);
    row.append(text("td", "", human(lost)), text("td", "", files.toLocaleString("en")),
      text("td", "", steps.map((s) => label(s[0]) + " → " + label(s[1])).join(", ") + (replaced ? " (replaced)" : " (deleted)")), cell);
    $("wastes").append(row);
  }
  $("sentence").textContent = TOP + (TOP === 1 ? " layer. " : " layers. ") + data.sentence + ".";

  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = dark.matches ? "dark" : "light";
  function paintTheme() {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", theme === "dark" ? "Switch to light colours" : "Switch to dark colours");
  }
  dark.addEventListener("change", () => { theme = dark.matches ? "dark" : "light"; paintTheme(); });
  $("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; paintTheme(); });
  paintTheme();

  // ---- Begin: small trees unfolded, large ones to the first level ----
  compute();
  if (N < 400) open.fill(1);
  select();
  bands();
  refresh();
  measure();
  requestAnimationFrame(() => { document.documentElement.dataset.ready = "yes"; });
})();
