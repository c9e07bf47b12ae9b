//! Which file of the program uses which: no circles, so that each can be read, tested and taken away without what stands on it.
//!
//! A use counts for the file that defines the item, through whichever names it is passed on. The type that a room's files
//! add methods to is used by them all: such files are named here, and arrows to them aren't counted.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};

/// Each defines one type whose methods stand in the files of its room.
const WHOLE: [&str; 4] = ["union", "image::store", "explain::lesson", "registry::client"];

/// The path of a module.
type Name = Vec<String>;

/// A file of the program.
#[derive(Default)]
struct Module {
    /// The paths that it uses, from the crate's root.
    uses: BTreeSet<Name>,
    /// What it passes on: the name, and where it comes from.
    passes_on: BTreeMap<String, Name>,
}

struct Walk {
    at: Name,
    found: Module,
}

impl Walk {
    /// The path from the crate's root, if it leads there.
    fn absolute(&self, path: &[String]) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        let base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.at.clone(),
            "super" => self.at[..self.at.len().checked_sub(1)?].to_vec(),
            _ => return None,
        };
        let up = rest.iter().take_while(|part| *part == "super").count();
        Some([&base[..base.len().checked_sub(up)?], &rest[up..]].concat())
    }

    fn tree(&mut self, tree: &syn::UseTree, mut before: Vec<String>, passed_on: bool) {
        let (name, shown) = match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                return self.tree(&path.tree, before, passed_on);
            }
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|item| self.tree(item, before.clone(), passed_on));
            }
            syn::UseTree::Name(name) => (Some(name.ident.to_string()), name.ident.to_string()),
            syn::UseTree::Rename(name) => (Some(name.ident.to_string()), name.rename.to_string()),
            syn::UseTree::Glob(_) => (None, String::new()),
        };
        before.extend(name.filter(|name| name != "self"));
        let Some(path) = self.absolute(&before) else { return };
        if passed_on {
            self.found.passes_on.insert(shown, path);
        } else {
            self.found.uses.insert(path);
        }
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|one| {
        one.path().is_ident("cfg") && one.parse_args::<syn::Path>().is_ok_and(|what| what.is_ident("test"))
    })
}

impl<'a> Visit<'a> for Walk {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.tree(&item.tree, Vec::new(), !matches!(item.vis, syn::Visibility::Inherited));
        }
    }

    /// Who may use it says nothing of what it uses.
    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.found.uses.extend(self.absolute(&names));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        let arguments = Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated;
        if let Ok(arguments) = item.parse_body_with(arguments) {
            for one in &arguments {
                visit::visit_expr(self, one);
            }
        }
    }
}

/// All files below src.
fn modules() -> BTreeMap<Name, Module> {
    let (mut all, mut todo) =
        (BTreeMap::new(), vec![(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Name::new())]);
    while let Some((dir, at)) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let below = [&at[..], std::slice::from_ref(&stem)].concat();
            if path.is_dir() {
                todo.push((path, below));
            } else if path.extension().is_some_and(|kind| kind == "rs") && stem != "main" && stem != "tests" {
                let name = if stem == "mod" || stem == "lib" { at.clone() } else { below };
                let mut walk = Walk { at: name.clone(), found: Module::default() };
                walk.visit_file(&syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
                all.insert(name, walk.found);
            }
        }
    }
    // Files of tests lie beside what they test.
    all.retain(|name: &Name, _| !name.iter().any(|part| part == "tests"));
    all
}

/// The file that defines what a path names.
fn defined_in(all: &BTreeMap<Name, Module>, path: &[String]) -> Name {
    let mut path = path.to_vec();
    // Nothing is passed on more often than this.
    for _ in 0..8 {
        let Some(len) = (0..=path.len()).rev().find(|&len| all.contains_key(&path[..len])) else { break };
        let from = path.get(len).and_then(|item| all[&path[..len]].passes_on.get(item));
        match from {
            Some(from) => path = [&from[..], &path[len + 1..]].concat(),
            None => return path[..len].to_vec(),
        }
    }
    Name::new()
}

/// Which file uses which others.
fn arrows(all: &BTreeMap<Name, Module>) -> BTreeMap<String, BTreeSet<String>> {
    let of = |(name, module): (&Name, &Module)| {
        let used = module.uses.iter().map(|path| defined_in(all, path).join("::"));
        let name = name.join("::");
        // A module that is named only to say where another lies is none: its file would be the root's.
        let used = used.filter(|used| *used != name && !used.is_empty() && !WHOLE.contains(&used.as_str()));
        (name.clone(), used.collect())
    };
    all.iter().map(of).collect()
}

/// All that is reached from a file.
fn reached<'a>(arrows: &'a BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
    while let Some(at) = todo.pop() {
        for next in arrows.get(at).into_iter().flatten() {
            if seen.insert(next.as_str()) {
                todo.push(next);
            }
        }
    }
    seen
}

/// The files that lie in a circle, each with those that it uses and that lead back to it.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> BTreeMap<&str, Vec<&str>> {
    let back = |name: &str, next: &&str| reached(arrows, next).contains(name);
    let of = |name: &'_ String| -> Vec<&str> {
        arrows[name].iter().map(String::as_str).filter(|next| back(name, next)).collect()
    };
    arrows.keys().map(|name| (name.as_str(), of(name))).filter(|(_, next)| !next.is_empty()).collect()
}

#[test]
fn no_file_uses_what_uses_it() {
    let arrows = arrows(&modules());
    assert!(
        arrows.len() > 200 && arrows.values().map(BTreeSet::len).sum::<usize>() > 1000,
        "hardly anything was found"
    );
    let found = circles(&arrows);
    assert!(found.is_empty(), "these use each other, in circles: {found:#?}");
}

#[test]
fn a_circle_is_found() {
    let module = |uses: &[&str], passes_on: &[(&str, &str)]| {
        let name = |text: &str| text.split("::").map(str::to_owned).collect::<Name>();
        Module {
            uses: uses.iter().map(|text| name(text)).collect(),
            passes_on: passes_on.iter().map(|(item, from)| ((*item).to_owned(), name(from))).collect(),
        }
    };
    let name = |text: &str| -> Name { text.split("::").map(str::to_owned).collect() };
    let all = BTreeMap::from([
        (name("a"), module(&[], &[("Of", "a::of::Of")])),
        (name("a::of"), module(&["b::Item"], &[])),
        (name("b"), module(&["a::Of", "c"], &[])),
        (name("c"), module(&["a::other"], &[])),
    ]);
    let arrows = arrows(&all);
    let found = circles(&arrows);
    assert_eq!(found, BTreeMap::from([("a::of", vec!["b"]), ("b", vec!["a::of"])]));
}
