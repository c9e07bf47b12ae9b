//! `layers --interactive` in a real terminal (tmux), small and large: of an image, a mount, directories, an archive.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::agreement::unionmount;
use support::{self, Scratch, Stack, WhiteoutForm};

/// A terminal in which `layers -i` runs. Ends with the test.
pub struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(columns: u32, lines: u32, arguments: &[&str]) -> Terminal {
        Terminal::run(
            Path::new("/"),
            columns,
            lines,
            &format!("unionmount layers -i {}", arguments.join(" ")),
        )
    }

    /// Runs a line of shell there; `unionmount` is the program.
    pub fn run(directory: &Path, columns: u32, lines: u32, line: &str) -> Terminal {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let terminal = Terminal { socket: format!("unionmount-{}-{number}", std::process::id()) };
        let program = unionmount();
        let line = format!(
            "unset NO_COLOR; PATH={}:$PATH; {line}; echo it-ended-with-$? | cat; cat",
            program.parent().unwrap().display()
        );
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let place = directory.to_str().unwrap();
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-c",
            place,
            "-x",
            &columns,
            "-y",
            &lines,
            &line,
        ]);
        terminal
    }

    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-L", &self.socket])
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .output()
            .expect("tmux");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn keys(&self, keys: &[&str]) {
        for key in keys {
            self.tmux(&["send-keys", key]);
        }
    }

    /// Waits until all of that is on the screen, and returns it.
    #[track_caller]
    pub fn shows(&self, parts: &[&str]) -> String {
        let mut screen = String::new();
        let all = support::wait_until(support::PATIENCE, || {
            screen = self.tmux(&["capture-pane", "-p"]);
            parts.iter().all(|part| screen.contains(part))
        });
        assert!(all, "{parts:?} are not in\n{screen}");
        screen
    }
}

impl Terminal {
    /// The screen with its colours, without what tells the end.
    pub fn looks(&self) -> String {
        let screen = self.tmux(&["capture-pane", "-p", "-e"]);
        screen.lines().filter(|line| !line.contains("it-ended-with-")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output();
    }
}

/// The line of the screen that holds a part.
#[track_caller]
fn line(screen: &str, part: &str) -> String {
    screen
        .lines()
        .find(|line| line.contains(part))
        .unwrap_or_else(|| panic!("no {part} in\n{screen}"))
        .to_owned()
}

/// 60 KB that are deleted further up, a file that was changed, symlinks.
fn stack() -> Stack {
    let stack = Stack::new(3);
    stack
        .lower(2)
        .file("etc/os", "debian")
        .file("usr/big.tar", vec![b'x'; 60_000])
        .file("usr/lib/small", "1");
    stack.lower(2).symlink("usr/link", "lib/small");
    stack.lower(1).whiteout("usr/big.tar", WhiteoutForm::Device).file("etc/app.conf", "port = 80");
    stack.lower(0).file("etc/app.conf", "port = 8080").file("etc/文件", "1");
    stack
}

fn of_directories(stack: &Stack) -> Vec<String> {
    let lowers: Vec<String> = stack.lowers().iter().map(|lower| lower.root().display().to_string()).collect();
    vec!["--lower".to_owned(), lowers.join(":")]
}

#[test]
fn layers_are_walked_through_by_keys() {
    let stack = stack();
    let arguments = of_directories(&stack);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for (columns, lines) in [(60, 20), (200, 50)] {
        let terminal = Terminal::start(columns, lines, &arguments);
        let screen = terminal.shows(&["58.60 KiB wasted", "all layers", "lower0", "▾ etc/", "文件"]);
        assert!(
            screen.lines().all(|line| unicode_width::UnicodeWidthStr::width(line) <= columns as usize),
            "{screen}"
        );
        // Hidden by a layer above: found, and told as such, with its history.
        terminal.keys(&["/", "b", "i", "g"]);
        let screen =
            terminal.shows(&["○", "big.tar", "1 found", "/usr/big.tar", "hidden by layer 2, wasted"]);
        assert!(line(&screen, "○").contains("58.59 KiB"), "{screen}");
        assert!(screen.contains("whiteout, deletes what layer 3 has"), "{screen}");
        terminal.keys(&["Enter", "Escape"]);
        terminal.shows(&["all layers", "os"]);
        // One layer down: what it deletes.
        terminal.keys(&["["]);
        let screen = terminal.shows(&["all up to layer 2", "−"]);
        assert!(line(&screen, "−").contains("big.tar"), "{screen}");
        assert!(!screen.contains("文件"), "{screen}");
        terminal.keys(&["a"]);
        let screen = terminal.shows(&["layer 2 alone"]);
        assert!(!screen.contains("small") && screen.contains("big.tar"), "{screen}");
        if columns >= 100 {
            assert!(line(&screen, "app.conf").contains("hidden by layer 1"), "{screen}");
        }
        // By size, the largest first, in the lowest layer.
        terminal.keys(&["[", "s", "Home"]);
        let screen = terminal.shows(&["layer 3 alone, by size", "▾ usr/", "big.tar", "lib/"]);
        if lines >= 50 {
            assert!(screen.find("▾ usr/").unwrap() < screen.find("▾ etc/").unwrap(), "{screen}");
        }
        assert!(screen.find("big.tar").unwrap() < screen.find("lib/").unwrap(), "{screen}");
        // Waste, from wherever one is.
        terminal.keys(&["w"]);
        terminal.shows(&["all up to layer 2, by size", "/usr/big.tar", "wasted"]);
        // The layers by their pane, folded directories, help, the end.
        terminal.keys(&["Tab", "Home"]);
        terminal.shows(&["all layers, by size", "2 files, 1 added, 1 changed, 0 deleted"]);
        terminal.keys(&["Tab", "Home", "-"]);
        let screen = terminal.shows(&["▸ usr/", "▸ etc/"]);
        assert!(!screen.contains("small"), "{screen}");
        terminal.keys(&["End", "Right"]);
        terminal.shows(&["▾ usr/", "link → lib/small"]);
        terminal.keys(&["?"]);
        terminal.shows(&["to the next waste"]);
        terminal.keys(&["x", "q"]);
        terminal.shows(&["it-ended-with-0"]);
    }
}

#[test]
fn both_screens_speak_chinese_in_columns() {
    let stack = stack();
    let arguments = of_directories(&stack);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--lang", "zh"]);
    let fits = |screen: &str, columns: u32| {
        let wide = |line: &str| unicode_width::UnicodeWidthStr::width(line) > columns as usize;
        assert!(!screen.lines().any(wide), "{screen}");
    };
    for (columns, lines) in [(60, 24), (120, 40)] {
        let terminal = Terminal::start(columns, lines, &arguments);
        fits(&terminal.shows(&["所有层", "浪费 58.60 KiB", "退出", "帮助"]), columns);
        terminal.keys(&["/", "b", "i", "g"]);
        fits(
            &terminal.shows(&["找到 1 个", "被第 2 层遮住，空间浪费", "删除标记，删除第 3 层里的内容"]),
            columns,
        );
        terminal.keys(&["Enter", "Escape", "?"]);
        fits(&terminal.shows(&["跳到下一处浪费", "按键"]), columns);
        terminal.keys(&["x", "q"]);
        terminal.shows(&["it-ended-with-0"]);
    }
    if !Path::new("/dev/fuse").exists() {
        return support::skipped("no /dev/fuse");
    }
    let mount = stack.mount();
    for (columns, lines) in [(60, 30), (120, 40)] {
        let line = format!("unionmount status --watch --lang zh {}", mount.path().display());
        let terminal = Terminal::run(Path::new("/"), columns, lines, &line);
        let screen = terminal.shows(&["挂载以来", "最热的路径", "各层内容", "可写层增加", "退出"]);
        fits(&screen, columns);
        std::fs::write(mount.path().join(format!("written{columns}")), "x").unwrap();
        fits(&terminal.shows(&[&format!("新建       /written{columns} （文件）")]), columns);
        terminal.keys(&["p"]);
        terminal.shows(&["事件（已暂停）", "继续"]);
        terminal.keys(&["q"]);
        terminal.shows(&["it-ended-with-0"]);
    }
}

#[test]
fn they_are_those_of_images_mounts_and_archives() {
    // An archive, below a directory.
    let stack = Stack::new(2);
    stack.lower(1).file("etc/os", "debian").file("in-the-archive", vec![b'a'; 2000]);
    stack.lower(0).file("etc/os", "changed");
    let tar = stack.scratch().path().join("base.tar");
    support::run(
        "tar",
        &["-C".as_ref(), stack.lower(1).root().as_os_str(), "-cf".as_ref(), tar.as_os_str(), ".".as_ref()],
    );
    let lowers = format!("{}:{}", stack.lower(0).root().display(), tar.display());
    let terminal = Terminal::start(60, 20, &["--lower", &lowers]);
    terminal.shows(&["in-the-archive", "1.95 KiB", "base.tar"]);
    terminal.keys(&["q"]);
    terminal.shows(&["it-ended-with-0"]);

    // An image, called by its name and its layers by their steps.
    let scratch = Scratch::new();
    let store = scratch.path().join("store");
    let image = Command::new(unionmount())
        .args(["import".as_ref(), stack.lower(1).root().as_os_str(), "web:1".as_ref()])
        .env("UNIONMOUNT_ROOT", &store)
        .output()
        .unwrap();
    assert!(image.status.success(), "{}", String::from_utf8_lossy(&image.stderr));
    let terminal = Terminal::start(100, 30, &["--root", store.to_str().unwrap(), "web:1"]);
    terminal.shows(&["web:1", "Imported from", "in-the-archive"]);

    if !Path::new("/dev/fuse").exists() {
        return support::skipped("no /dev/fuse");
    }
    let mount = stack.mount();
    std::fs::write(mount.path().join("written"), "through the mount").unwrap();
    let terminal = Terminal::start(100, 30, &[mount.path().to_str().unwrap()]);
    let screen = terminal.shows(&["upper", "written", "etc/"]);
    assert!(line(&screen, "written").contains("▌upper"), "{screen}");
}

#[test]
fn without_a_terminal_it_says_what_else_there_is() {
    let stack = stack();
    let mut arguments = vec!["layers".to_owned(), "-i".to_owned()];
    arguments.extend(of_directories(&stack));
    let output = support::output(unionmount(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("needs a terminal") && error.contains("--tree"), "{error}");
}
