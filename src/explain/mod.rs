//! Watching copy-on-write: where a path comes from, what a mount does, what is in it; the pictures of a stack.
//!
//! | module | what it knows |
//! |---|---|
//! | [`report`], [`predicted_effect`] | the explanation of a path, and what a change would do |
//! | [`picture`], [`words`], [`paint`] | the same for people |
//! | [`survey`] | all that the layers of a stack hold: what each did at each path, and what became of it |
//! | [`figures`] | the survey in figures: sizes, waste, efficiency |
//! | [`causes`] | why bytes are wasted |
//! | [`browse`] | the survey as a tree to walk through: what is open, sorted, searched |
//! | [`text`], [`json`], [`svg`], [`page`] | the survey for a terminal, for programs, as the textbooks' picture, as a page |
//! | [`simulator`] | a union to try in a browser, without a mount |
//! | [`colours`] | the colour of each layer |
//! | [`lesson`] | copy-on-write taught step by step, on real mounts |
//! | [`names`], [`shorten`] | names and sizes as a person reads them, safe to print, in the room that there is |
//!
//! The rules of layers are not here: [`crate::union::lookup::provenance`] asks the union's own search, and the survey reads by
//! the union's scan and marks.

pub mod browse;
pub mod causes;
pub mod colours;
pub mod figures;
pub mod json;
pub mod lesson;
pub mod names;
pub mod page;
pub mod paint;
pub mod picture;
pub mod predicted_effect;
pub mod report;
pub mod shorten;
pub mod simulator;
pub mod survey;
pub mod svg;
pub mod text;
pub mod titles;
mod walk;
mod web;
pub mod words;
