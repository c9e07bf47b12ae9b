//! The lesson on a terminal: it fits, and keys do what they say.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use support::Scratch;
use unicode_width::UnicodeWidthStr;

use super::{assert_gone, demo, has_fuse};

/// The lesson on a terminal of its own.
struct Screen {
    child: Child,
    out: Receiver<String>,
}

impl Screen {
    fn start(scratch: &Scratch, rows: usize, columns: usize, arguments: &str) -> Screen {
        let lesson = demo(scratch, &[]);
        let program = lesson.get_program().to_str().unwrap().to_owned();
        let script = format!("stty rows {rows} cols {columns}; exec {program} demo {arguments}");
        let mut command = std::process::Command::new("script");
        command.args(["-qefc", &script, "/dev/null"]).env("TERM", "xterm").env("NO_COLOR", "1");
        for (name, value) in lesson.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, out) = channel();
        std::thread::spawn(move || {
            let (mut buffer, mut pending) = ([0; 4096], Vec::new());
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                pending.extend_from_slice(&buffer[..n]);
                // A character may come in two parts.
                let whole = match std::str::from_utf8(&pending) {
                    Ok(text) => text.len(),
                    Err(error) => error.valid_up_to(),
                };
                let text = String::from_utf8(pending.drain(..whole).collect()).unwrap();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        Screen { child, out }
    }

    /// Waits until it waits, and returns what was shown since; `None`: it has ended.
    fn until_it_waits(&mut self) -> Option<String> {
        let mut shown = String::new();
        loop {
            match self.out.recv_timeout(support::PATIENCE) {
                Ok(more) => shown += &more.replace('\r', ""),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(error) => panic!("{error}: it doesn't wait, but shows {shown:?}"),
            }
            let last = shown.rsplit('\n').next().unwrap();
            if last.ends_with("] ") && last.starts_with('[') || last.starts_with("$ ") && last.ends_with(' ')
            {
                return Some(shown);
            }
        }
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    fn end(mut self) -> Option<i32> {
        let ended = support::wait_until(support::PATIENCE, || self.child.try_wait().unwrap().is_some());
        assert!(ended, "it doesn't end");
        self.child.wait().unwrap().code()
    }
}

#[test]
fn what_is_to_be_read_at_once_fits_the_screen() {
    if !has_fuse() {
        return;
    }
    for (rows, columns, lesson, language) in [
        (24, 80, "basics", "en"),
        (24, 60, "basics", "zh"),
        (40, 200, "images", "en"),
        (24, 80, "images", "zh"),
        (24, 60, "puzzle", "en"),
    ] {
        let scratch = Scratch::new();
        let mut screen = Screen::start(&scratch, rows, columns, &format!("{lesson} --lang {language}"));
        let mut all = String::new();
        while let Some(shown) = screen.until_it_waits() {
            let lines: usize = shown.lines().map(|line| line.width().div_ceil(columns).max(1)).sum();
            assert!(lines <= rows, "{rows}×{columns} {lesson} {language}: {lines} lines:\n{shown}");
            let prose = |line: &&str| !line.starts_with("  ") && !line.starts_with("$ ");
            for line in shown.lines().filter(prose) {
                assert!(line.width() <= columns.min(80), "{columns}: {line}");
            }
            all += &shown;
            screen.press("\r");
        }
        assert!(all.contains("13/13") || all.contains("7/7") || all.contains("5/5"), "{all}");
        assert_eq!(screen.end(), Some(0));
        assert_gone(&scratch);
    }
}

#[test]
fn keys_answer_go_back_and_leave() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let mut screen = Screen::start(&scratch, 24, 80, "--lang en --step 2");
    let mut shows = |keys: &str, part: &str| {
        screen.press(keys);
        let shown = screen.until_it_waits().unwrap();
        assert!(shown.contains(part), "{keys:?}: {part:?} is not in {shown}");
    };
    shows("", "2/13");
    // One key: the answer. The left arrow: back.
    shows("3", "Reading copies nothing.");
    shows("\x1b[D", "1/13");
    // A command that is mended while it is typed, with a terminal of its own.
    shows("!tty >/dev/null && echo terminax\x7fl\r", "\nterminal\n");
    screen.press("\x1b");
    assert!(screen.until_it_waits().is_none(), "Esc leaves");
    assert_eq!(screen.end(), Some(0));
    assert_gone(&scratch);

    let mut screen = Screen::start(&scratch, 24, 80, "--lang en");
    screen.until_it_waits().unwrap();
    screen.press("\x03");
    assert!(screen.until_it_waits().is_none());
    assert_eq!(screen.end(), Some(130));
    assert_gone(&scratch);
}
