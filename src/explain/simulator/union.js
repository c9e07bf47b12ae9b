"use strict";
/**
 * A union of layers in memory. A layer is a Map from a path to what the layer has there:
 * {kind: "file", text} | {kind: "dir", opaque, redirect} | {kind: "whiteout"}. Layer 0 is the upper, 1 the topmost lower; only the upper is
 * ever written. Paths have no leading slash; the root is "". Operations throw the name of an errno.
 */
class Union {
  constructor(lowers) {
    this.layers = [new Map(), ...lowers.map((layer) => new Map(Object.entries(layer)))];
    this.said = [];
  }

  static join(dir, name) { return dir ? dir + "/" + name : name; }
  static split(path) {
    const at = path.lastIndexOf("/");
    return at < 0 ? ["", path] : [path.slice(0, at), path.slice(at + 1)];
  }
  /** Notes what happened, by a key of the texts and what is filled in. */
  say(key, values) { this.said.push({ key, values }); }
  root() { return this.layers.map((_, layer) => ({ layer, path: "" })); }

  /** What a name stands for in directories that are merged, the topmost first: the topmost entry that nothing above it hides. */
  look(dirs, name) {
    const found = [];
    for (const dir of dirs) {
      const path = Union.join(dir.path, name), entry = this.layers[dir.layer].get(path);
      if (!entry) continue;
      if (entry.kind === "whiteout") break;
      if (entry.kind === "file") {
        // Below a directory it is hidden, and hides.
        if (!found.length) return { kind: "file", layer: dir.layer, path, text: entry.text };
        break;
      }
      found.push({ layer: dir.layer, path });
      if (entry.opaque) break;
      if (entry.redirect !== undefined) {
        const below = this.walk(entry.redirect, this.root().filter((root) => root.layer > dir.layer));
        if (below && below.kind === "dir") found.push(...below.dirs);
        break;
      }
    }
    return found.length ? { kind: "dir", dirs: found } : null;
  }

  walk(path, roots = this.root()) {
    let at = { kind: "dir", dirs: roots };
    for (const name of path.split("/").filter(Boolean)) {
      if (!at) return null;
      if (at.kind !== "dir") throw "ENOTDIR";
      at = this.look(at.dirs, name);
    }
    return at;
  }

  /** The directory in which a path is, and what is there. */
  place(path) {
    const [dir, name] = Union.split(path);
    const parent = this.walk(dir);
    if (!parent) throw "ENOENT";
    if (parent.kind !== "dir") throw "ENOTDIR";
    return { path, dir, name, parent, found: this.look(parent.dirs, name) };
  }

  names(dirs) {
    const names = new Set();
    for (const { layer, path } of dirs) {
      for (const key of this.layers[layer].keys()) {
        const [dir, name] = Union.split(key);
        if (name && dir === path) names.add(name);
      }
    }
    return [...names].sort().filter((name) => this.look(dirs, name));
  }

  /** What the lowers have under a name, as they are seen in this directory. */
  below(place) { return this.look(place.parent.dirs.filter((dir) => dir.layer > 0), place.name); }

  /** Makes the directories that lead to a path in the upper. */
  parents(path) {
    const parts = Union.split(path)[0].split("/").filter(Boolean);
    let at = "";
    for (const part of parts) {
      at = Union.join(at, part);
      const entry = this.layers[0].get(at);
      if (!entry || entry.kind !== "dir") {
        this.layers[0].set(at, { kind: "dir" });
        this.say("parents", { path: at });
      }
    }
  }

  /** Removes what the upper has at a path and below it. */
  drop(path) {
    for (const key of [...this.layers[0].keys()]) if (key === path || key.startsWith(path + "/")) this.layers[0].delete(key);
  }

  hide(place, below) {
    if (!below) return;
    this.layers[0].set(place.path, { kind: "whiteout" });
    this.say("whiteout", { path: place.path });
  }

  put(place, text, what) {
    const old = place.found, hidden = this.layers[0].get(place.path);
    this.parents(place.path);
    this.layers[0].set(place.path, { kind: "file", text });
    if (old && old.layer > 0) {
      // Who replaces all of a file needs nothing of it.
      this.say(what === "append" ? "copied" : "replaced", { path: place.path, layer: old.layer, count: old.text.length });
    } else if (hidden && hidden.kind === "whiteout") {
      this.say("instead", { path: place.path });
    } else {
      this.say(old ? "in_place" : "made", { path: place.path });
    }
  }

  read(path) {
    const found = this.walk(path);
    if (!found) throw "ENOENT";
    if (found.kind === "dir") throw "EISDIR";
    this.say("read", { layer: found.layer });
    return found.text;
  }

  list(path) {
    const found = this.walk(path);
    if (!found) throw "ENOENT";
    if (found.kind !== "dir") throw "ENOTDIR";
    this.say("merged", { layers: [...new Set(found.dirs.map((dir) => dir.layer))] });
    return this.names(found.dirs);
  }

  write(path, text) {
    if (!path) throw "EISDIR";
    const place = this.place(path);
    if (place.found && place.found.kind === "dir") throw "EISDIR";
    this.put(place, text, "write");
  }

  append(path, text) {
    if (!path) throw "EISDIR";
    const place = this.place(path);
    if (!place.found) throw "ENOENT";
    if (place.found.kind === "dir") throw "EISDIR";
    this.put(place, place.found.text + text, "append");
  }

  mkdir(path) {
    if (!path) throw "EEXIST";
    const place = this.place(path);
    if (place.found) throw "EEXIST";
    const below = this.below(place);
    this.parents(path);
    this.layers[0].set(path, below ? { kind: "dir", opaque: true } : { kind: "dir" });
    this.say(below ? "made_opaque" : "made_dir", { path });
  }

  unlink(path) {
    if (!path) throw "EISDIR";
    const place = this.place(path);
    if (!place.found) throw "ENOENT";
    if (place.found.kind === "dir") throw "EISDIR";
    this.remove(place);
  }

  rmdir(path) {
    if (!path) throw "EBUSY";
    const place = this.place(path);
    if (!place.found) throw "ENOENT";
    if (place.found.kind !== "dir") throw "ENOTDIR";
    if (this.names(place.found.dirs).length) throw "ENOTEMPTY";
    this.remove(place);
  }

  remove(place) {
    const below = this.below(place);
    this.parents(place.path);
    if (this.layers[0].has(place.path)) this.say("removed", { path: place.path });
    this.drop(place.path);
    this.hide(place, below);
  }

  rename(from, to) {
    if (!from || !to) throw "EBUSY";
    const old = this.place(from), goal = this.place(to);
    if (!old.found) throw "ENOENT";
    if (to.startsWith(from + "/")) throw "EINVAL";
    if (from.startsWith(to + "/")) throw "ENOTEMPTY";
    if (from === to) return;
    if (goal.found) {
      if (old.found.kind === "dir" && goal.found.kind !== "dir") throw "ENOTDIR";
      if (old.found.kind !== "dir" && goal.found.kind === "dir") throw "EISDIR";
      if (goal.found.kind === "dir" && this.names(goal.found.dirs).length) throw "ENOTEMPTY";
    }
    const left = this.below(old), covered = this.below(goal);
    this.parents(from);
    this.parents(to);
    this.drop(to);
    if (old.found.kind === "file") {
      if (old.found.layer > 0) this.say("copied_whole", { path: from, count: old.found.text.length });
      this.layers[0].set(to, { kind: "file", text: old.found.text });
    } else this.move(old, to, covered);
    this.drop(from);
    this.say("renamed", { path: from, to });
    this.hide(old, left);
  }

  /** Moves a directory of the upper; what lower layers have of it stays there, and a redirect leads to it. */
  move(old, to, covered) {
    const upper = this.layers[0], from = old.path, lower = old.found.dirs.find((dir) => dir.layer > 0);
    const entry = { ...(upper.get(from) || { kind: "dir" }) };
    if (lower && entry.redirect === undefined) {
      entry.redirect = lower.path;
      this.say("redirect", { path: to, from: lower.path });
    } else if (!lower && covered) entry.opaque = true;
    for (const [key, value] of [...upper]) if (key.startsWith(from + "/")) upper.set(to + key.slice(from.length), value);
    upper.set(to, entry);
  }

  /** Does one operation; tells what came of it. */
  do({ op, path, other }) {
    this.said = [];
    try {
      const answer = this[op](path, other);
      return { answer: answer === undefined ? null : answer, error: null, said: this.said };
    } catch (error) {
      if (typeof error !== "string") throw error;
      return { answer: null, error, said: [] };
    }
  }

  /** The merged view: path → the text of a file, null for a directory. */
  view() {
    // Without a prototype: files may be called as its properties are.
    const view = Object.create(null);
    const visit = (path, dirs) => {
      for (const name of this.names(dirs)) {
        const found = this.look(dirs, name), at = Union.join(path, name);
        view[at] = found.kind === "file" ? found.text : null;
        if (found.kind === "dir") visit(at, found.dirs);
      }
    };
    visit("", this.root());
    return view;
  }

  copy() {
    const copy = new Union([]);
    copy.layers = this.layers.map((layer) => new Map(layer));
    return copy;
  }
}

/** Does a sequence of operations; after each: the error, the answer, the merged view. */
function simulate(lowers, operations) {
  const union = new Union(lowers);
  return operations.map((operation) => {
    const { answer, error } = union.do(operation);
    const deleted = [...union.layers[0]].filter(([, entry]) => entry.kind === "whiteout").map(([path]) => path).sort();
    return { answer, error, view: union.view(), deleted };
  });
}
