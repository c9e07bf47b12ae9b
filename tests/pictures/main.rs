//! The pictures of a stack: `layers` in all its forms and the page in a browser.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod agreement;
mod browser;
mod figures;
mod images;
mod manual;
mod screen;
mod terminal;
mod webdriver;
