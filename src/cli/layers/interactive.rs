//! `unionmount layers --interactive`: the layers and their tree, walked through by keys.

mod screen;

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::process::ExitCode;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::cli::Failure;
use crate::cli::page::is_terminal;
use crate::explain::browse::{Browse, Order};
use crate::explain::figures::Figures;
use crate::explain::page::Subject;
use crate::explain::paint::Paint;
use crate::explain::survey::{Number, Survey};
use crate::texts::Texts;

/// Which part of the screen the keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pane {
    Layers,
    Tree,
}

/// What the screen shows.
struct Walk<'s> {
    texts: &'static Texts,
    browse: Browse<'s>,
    figures: &'s Figures,
    title: &'s str,
    pane: Pane,
    /// The line of the tree that is chosen.
    cursor: usize,
    /// A search is being typed.
    typing: bool,
    help: bool,
    /// Places of waste, and which one comes next.
    wastes: Vec<(usize, Number)>,
    next_waste: usize,
    /// What a key has to say.
    said: String,
    /// How many lines a page of the tree has, as it was drawn.
    page: usize,
    colours: bool,
}

/// Shows the layers until `q`.
pub(super) fn run(
    texts: &'static Texts,
    survey: &Survey,
    figures: &Figures,
    subject: &Subject,
) -> Result<ExitCode, Failure> {
    if !is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::failed(
            "--interactive needs a terminal; without one, use --tree, --html FILE or --json",
        ));
    }
    let browse = Browse::new(survey);
    let mut walk = Walk {
        texts,
        wastes: browse.wastes(),
        browse,
        figures,
        title: &subject.title,
        pane: Pane::Tree,
        cursor: 0,
        typing: false,
        help: false,
        next_waste: 0,
        said: String::new(),
        page: 10,
        colours: Paint::of_stdout().is_on(),
    };
    let terminal = ratatui::try_init();
    let ended = terminal
        .and_then(|mut terminal| walk.show(&mut terminal))
        .map_err(|error| Failure::failed(format!("the terminal: {error}")));
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

impl Walk<'_> {
    fn show(&mut self, terminal: &mut ratatui::DefaultTerminal) -> io::Result<()> {
        loop {
            terminal.draw(|frame| screen::draw(frame, self))?;
            // Whatever else comes, such as a new size, is drawn.
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && self.key(key).is_break()
            {
                return Ok(());
            }
        }
    }

    fn key(&mut self, key: KeyEvent) -> ControlFlow<()> {
        self.said.clear();
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
        }
        if self.typing {
            self.type_key(key.code);
            return ControlFlow::Continue(());
        }
        if self.help {
            self.help = false;
            return ControlFlow::Continue(());
        }
        match key.code {
            KeyCode::Char('q') => return ControlFlow::Break(()),
            KeyCode::Esc if self.browse.query().is_empty() => return ControlFlow::Break(()),
            KeyCode::Esc => self.keeping(|browse| browse.search("")),
            KeyCode::Char('?') => self.help = true,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Tab | KeyCode::BackTab => {
                self.pane = if self.pane == Pane::Tree { Pane::Layers } else { Pane::Tree };
            }
            KeyCode::Char(']') => self.see(1),
            KeyCode::Char('[') => self.see(-1),
            KeyCode::Char('a') => self.keeping(|browse| browse.see(browse.top(), !browse.is_alone())),
            KeyCode::Char('h') => self.keeping(|browse| browse.show_hidden(!browse.shows_hidden())),
            KeyCode::Char('s') => self.keeping(|browse| {
                browse.sort(match browse.order() {
                    Order::Name => Order::Size,
                    Order::Size => Order::Layer,
                    Order::Layer => Order::Name,
                });
            }),
            KeyCode::Char('+' | '*') => self.keeping(|browse| browse.open_all(true)),
            KeyCode::Char('-') => self.keeping(|browse| browse.open_all(false)),
            KeyCode::Char('w') => self.go_to_waste(),
            code => match self.pane {
                Pane::Tree => self.move_in_tree(code),
                Pane::Layers => self.move_in_layers(code),
            },
        }
        ControlFlow::Continue(())
    }

    fn type_key(&mut self, code: KeyCode) {
        let mut query = self.browse.query().to_owned();
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                query.clear();
            }
            KeyCode::Backspace => {
                query.pop();
            }
            KeyCode::Char(c) => query.push(c),
            KeyCode::Up | KeyCode::Down => {
                self.typing = false;
                self.move_in_tree(code);
            }
            _ => {}
        }
        if query != self.browse.query() {
            self.browse.search(&query);
            self.cursor = self.browse.rows().iter().position(|row| row.found).unwrap_or(0);
        }
    }

    /// Changes what is seen, and stays at the same place if it still has a line.
    fn keeping(&mut self, change: impl FnOnce(&mut Browse<'_>)) {
        let place = self.place();
        change(&mut self.browse);
        let at = place.and_then(|place| self.browse.rows().iter().position(|row| row.place == place));
        self.cursor = at.unwrap_or(0);
    }

    /// Returns the place that is chosen.
    fn place(&self) -> Option<usize> {
        self.browse.rows().get(self.cursor).map(|row| row.place)
    }

    fn see(&mut self, step: i32) {
        let top = i32::from(self.browse.top()) + step;
        let top = Number::try_from(top.max(1)).unwrap_or(Number::MAX);
        self.keeping(|browse| browse.see(top, browse.is_alone()));
    }

    fn move_in_layers(&mut self, code: KeyCode) {
        match code {
            // The topmost stands on top.
            KeyCode::Up | KeyCode::Char('k') => self.see(1),
            KeyCode::Down | KeyCode::Char('j') => self.see(-1),
            KeyCode::PageUp | KeyCode::Home | KeyCode::Char('g') => self.see(i32::from(Number::MAX)),
            KeyCode::PageDown | KeyCode::End | KeyCode::Char('G') => self.see(-i32::from(Number::MAX)),
            KeyCode::Enter | KeyCode::Right => self.pane = Pane::Tree,
            _ => {}
        }
    }

    fn move_in_tree(&mut self, code: KeyCode) {
        let last = self.browse.rows().len().saturating_sub(1);
        let Some(row) = self.browse.rows().get(self.cursor).copied() else { return };
        match code {
            KeyCode::Down | KeyCode::Char('j') => self.cursor += 1,
            KeyCode::Up | KeyCode::Char('k') => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::PageDown => self.cursor += self.page,
            KeyCode::PageUp => self.cursor = self.cursor.saturating_sub(self.page),
            KeyCode::Home | KeyCode::Char('g') => self.cursor = 0,
            KeyCode::End | KeyCode::Char('G') => self.cursor = last,
            KeyCode::Right | KeyCode::Char('l') => match row.directory {
                Some(false) => self.keeping(|browse| browse.open(row.place, true)),
                Some(true) => self.cursor += 1,
                None => {}
            },
            KeyCode::Left => match row.directory {
                Some(true) if self.browse.query().is_empty() => {
                    self.keeping(|browse| browse.open(row.place, false));
                }
                _ => self.go_to_parent(row.place),
            },
            KeyCode::Enter | KeyCode::Char(' ') => {
                if let Some(open) = row.directory.filter(|_| self.browse.query().is_empty()) {
                    self.keeping(|browse| browse.open(row.place, !open));
                }
            }
            _ => {}
        }
        self.cursor = self.cursor.min(self.browse.rows().len().saturating_sub(1));
    }

    fn go_to_parent(&mut self, place: usize) {
        let parent = self.browse.survey().places[place].parent as usize;
        let at = self.browse.rows().iter().position(|row| row.place == parent);
        self.cursor = at.unwrap_or(self.cursor);
    }

    /// Goes to the next place of waste, with the layers with which that is seen.
    fn go_to_waste(&mut self) {
        let Some((place, top)) = self.wastes.get(self.next_waste).copied() else {
            let none = self.wastes.is_empty();
            let key = if none { "walk.no_waste" } else { "walk.no_more_waste" };
            self.said = self.texts.say(key).to_owned();
            self.next_waste = 0;
            return;
        };
        self.next_waste += 1;
        self.browse.search("");
        self.browse.see(top, false);
        self.cursor = self.browse.reveal(place).unwrap_or(0);
        self.pane = Pane::Tree;
    }
}
