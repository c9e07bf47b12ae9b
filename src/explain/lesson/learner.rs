//! Who takes the lesson: somebody at a terminal, a file of answers, or nobody, who only watches.

use std::io::{self, BufRead, Write};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use unicode_width::UnicodeWidthChar;

/// What a learner says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// Enter.
    Go,
    /// To the step before.
    Back,
    /// Enough.
    Quit,
    /// As by `^C`.
    Interrupt,
    /// A command of his own; empty: a shell.
    Own(String),
    /// The number of an answer, or an answer in words.
    Words(String),
}

/// Somebody who takes a lesson.
pub trait Learner {
    /// Waits until he has something to say. He was shown `lines` since, and may choose among so many answers.
    ///
    /// # Errors
    /// Those of the input.
    fn listen(&mut self, lines: usize, choices: usize) -> io::Result<Says>;

    /// Tells whether he can be asked.
    fn answers(&self) -> bool {
        true
    }

    /// Tells whether he sits at a terminal, which a command can have.
    fn has_terminal(&self) -> bool {
        false
    }
}

/// Understands what was typed.
fn understand(line: &str) -> Says {
    let line = line.trim();
    // An input method may write the wide sign.
    if let Some(command) = line.strip_prefix(['!', '！']) {
        return Says::Own(command.trim().to_owned());
    }
    match line.trim_matches('\x1b').to_lowercase().as_str() {
        "" if line.is_empty() => Says::Go,
        "" | "q" | "quit" | "exit" | "退出" => Says::Quit,
        "b" | "back" | "返回" => Says::Back,
        _ => Says::Words(line.to_owned()),
    }
}

/// One whose answers come line by line. The end of the input is the end of the lesson.
pub struct Typed<R>(pub R);

impl<R: BufRead> Learner for Typed<R> {
    fn listen(&mut self, _lines: usize, _choices: usize) -> io::Result<Says> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line)?;
        Ok(if read == 0 { Says::Quit } else { understand(&line) })
    }
}

/// One who only watches: it goes on by itself.
pub struct Watching {
    /// How long a few lines are shown.
    pub pace: Duration,
}

/// So many lines are read in the time of one pace.
const LINES_A_PACE: usize = 6;

impl Learner for Watching {
    fn listen(&mut self, lines: usize, _choices: usize) -> io::Result<Says> {
        let times = lines.div_ceil(LINES_A_PACE).max(1);
        std::thread::sleep(self.pace.saturating_mul(u32::try_from(times).unwrap_or(1)));
        Ok(Says::Go)
    }

    fn answers(&self) -> bool {
        false
    }
}

/// One at the terminal, whose keys are heard as they are pressed.
pub struct AtTerminal<W>(pub W);

impl<W: Write> Learner for AtTerminal<W> {
    fn listen(&mut self, _lines: usize, choices: usize) -> io::Result<Says> {
        enable_raw_mode()?;
        let said = self.keys(choices);
        disable_raw_mode()?;
        said
    }

    fn has_terminal(&self) -> bool {
        true
    }
}

impl<W: Write> AtTerminal<W> {
    fn keys(&mut self, choices: usize) -> io::Result<Says> {
        let mut line = String::new();
        loop {
            let Event::Key(key) = event::read()? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match heard(&mut line, key, choices) {
                Heard::Said(says) => return Ok(says),
                Heard::Shows(text) => {
                    self.0.write_all(text.as_bytes())?;
                    self.0.flush()?;
                }
            }
        }
    }
}

/// What a key does: it ends what is said, or changes the line that is being typed.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Said(Says),
    Shows(String),
}

fn heard(line: &mut String, key: KeyEvent, choices: usize) -> Heard {
    let erase = |c: char| "\x08 \x08".repeat(c.width().unwrap_or(0));
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let fresh = line.is_empty();
    Heard::Said(match key.code {
        KeyCode::Char('c') if control => Says::Interrupt,
        KeyCode::Char('d') if control && fresh => Says::Quit,
        KeyCode::Char('u') if control => return Heard::Shows(line.drain(..).map(erase).collect()),
        KeyCode::Esc if !fresh => return Heard::Shows(line.drain(..).map(erase).collect()),
        KeyCode::Esc => Says::Quit,
        KeyCode::Enter => understand(line),
        // Enter that was pressed before the keys were listened to, as the terminal writes it then.
        KeyCode::Char('j') if control => understand(line),
        KeyCode::Left if fresh => Says::Back,
        KeyCode::Right | KeyCode::Char(' ') if fresh => Says::Go,
        KeyCode::Backspace => return Heard::Shows(line.pop().map(erase).unwrap_or_default()),
        KeyCode::Char(c) if !control && !c.is_control() => {
            line.push(c);
            let chosen = c.to_digit(10).is_some_and(|digit| (1..=choices).contains(&(digit as usize)));
            if !(fresh && chosen) {
                return Heard::Shows(c.to_string());
            }
            Says::Words(c.to_string())
        }
        _ => return Heard::Shows(String::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_leaving_and_going_back_are_understood() {
        for (line, says) in [
            ("\n", Says::Go),
            ("q\n", Says::Quit),
            ("QUIT", Says::Quit),
            ("exit\n", Says::Quit),
            ("\x1b\n", Says::Quit),
            ("back\n", Says::Back),
            ("b", Says::Back),
            ("!ls -l rw\n", Says::Own("ls -l rw".into())),
            ("！ls", Says::Own("ls".into())),
            ("!\n", Says::Own(String::new())),
            ("2\n", Says::Words("2".into())),
            ("in patch/", Says::Words("in patch/".into())),
        ] {
            assert_eq!(understand(line), says, "{line:?}");
        }
        assert_eq!(Typed(&b""[..]).listen(0, 0).unwrap(), Says::Quit);
    }

    #[test]
    fn keys_make_a_line_that_can_be_mended() {
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        let mut line = String::new();
        for c in "!lx你".chars() {
            assert_eq!(heard(&mut line, key(KeyCode::Char(c)), 3), Heard::Shows(c.to_string()));
        }
        assert_eq!(heard(&mut line, key(KeyCode::Backspace), 3), Heard::Shows("\x08 \x08\x08 \x08".into()));
        heard(&mut line, key(KeyCode::Backspace), 3);
        heard(&mut line, key(KeyCode::Char('s')), 3);
        assert_eq!(heard(&mut line, key(KeyCode::Enter), 3), Heard::Said(Says::Own("ls".into())));
        // The first Esc takes the line away, the second one leaves.
        assert!(matches!(heard(&mut line, key(KeyCode::Esc), 3), Heard::Shows(_)));
        assert_eq!(heard(&mut line, key(KeyCode::Esc), 3), Heard::Said(Says::Quit));
        assert_eq!(heard(&mut line, key(KeyCode::Char('2')), 3), Heard::Said(Says::Words("2".into())));
        line.clear();
        assert_eq!(heard(&mut line, key(KeyCode::Char('4')), 3), Heard::Shows("4".into()));
        let early = KeyEvent::new(KeyCode::Char('j'), KeyModifiers::CONTROL);
        assert_eq!(heard(&mut String::new(), early, 3), Heard::Said(Says::Go));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(heard(&mut line, interrupt, 3), Heard::Said(Says::Interrupt));
    }
}
