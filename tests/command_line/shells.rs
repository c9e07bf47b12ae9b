//! Completion in the shells themselves, on a terminal.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use support::cli::Place;

/// A shell on a terminal of its own, which knows this program's completions.
struct Shell {
    name: &'static str,
    child: Child,
    screen: Receiver<String>,
    /// What was shown since the last command.
    shown: String,
}

const PROMPT: &str = "READY>";

/// How each is started, with nobody's settings, and where a line is a command.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "env PS1='READY>' bash --norc --noprofile -i"),
    ("zsh", "env PS1='READY>' zsh -f -i"),
    ("fish", "fish --no-config -i -C 'function fish_prompt; echo -n \"READY>\"; end'"),
];

impl Shell {
    fn start(place: &Place, name: &'static str, command: &str) -> Shell {
        let script = format!("stty rows 40 cols 120; exec {command}");
        let path = std::env::var("PATH").unwrap();
        let mut child = Command::new("script")
            .args(["-qefc", &script, "/dev/null"])
            .current_dir(place.path())
            .env("TERM", "xterm")
            .env("HOME", place.path())
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", format!("{}:{path}", place.path().display()))
            .env("UNIONMOUNT_ROOT", place.at("store"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..n]).into_owned()).is_err() {
                    return;
                }
            }
        });
        let mut shell = Shell { name, child, screen, shown: String::new() };
        shell.until(PROMPT);
        if name == "zsh" {
            shell.types("autoload -U compinit; compinit -u -D; LISTMAX=1000\n");
            shell.until(PROMPT);
        }
        shell.types(&format!("unionmount completions {name} > script; . ./script; echo do''ne\n"));
        shell.until("done");
        shell.until(PROMPT);
        shell
    }

    fn types(&mut self, text: &str) {
        self.shown.clear();
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until it is shown, and forgets what came before.
    #[track_caller]
    fn until(&mut self, part: &str) {
        let shown = self.shows(part, Duration::from_secs(20));
        assert!(shown, "{}: {part:?} is not shown, but {:?}", self.name, anstripped(&self.shown));
    }

    /// Whether it is shown within some time; then what came before is forgotten.
    fn shows(&mut self, part: &str, patience: Duration) -> bool {
        loop {
            // Whatever colours the shell gives the words.
            let plain = anstripped(&self.shown);
            if let Some(at) = plain.find(part) {
                self.shown = plain[at + part.len()..].to_owned();
                return true;
            }
            match self.screen.recv_timeout(patience) {
                Ok(more) => self.shown.push_str(&more),
                Err(_) => return false,
            }
        }
    }

    /// Types the beginning of a line, a tab and an X, and has the line printed that came of it.
    #[track_caller]
    fn completes(&mut self, begun: &str, to: &str) {
        self.types(begun);
        self.until(begun);
        self.types("\tX\x01echo \n");
        self.until(&format!("{to}X"));
        self.until(PROMPT);
    }

    /// Types it and asks, and waits for what may stand there.
    #[track_caller]
    fn offers(&mut self, begun: &str, all: &[&str]) {
        self.types(begun);
        self.until(begun.trim_end());
        self.types(if self.name == "bash" { "\t\t" } else { "\t" });
        for one in all {
            self.until(one);
        }
        // A shell that still draws what it offers swallows what gives the line up.
        let given_up = (0..10).any(|_| {
            self.types(if self.name == "fish" { "\x03" } else { "\x15\n" });
            self.shows(PROMPT, Duration::from_secs(2))
        });
        assert!(given_up, "{}: no prompt comes back", self.name);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().ok();
    }
}

/// Without escape sequences.
fn anstripped(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('[') => while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {},
            Some(']') => while chars.next_if(|c| !matches!(c, '\x07' | '\x1b')).is_some() {},
            _ => continue,
        }
        chars.next();
    }
    plain
}

#[test]
fn each_shell_completes_verbs_names_and_options() {
    for (name, command) in SHELLS {
        if !support::is_installed(name) {
            support::skip!("needs the package {name}");
        }
        let place = Place::new();
        place.mkdir("lowers/one");
        place.mkdir("lowers/two");
        fs::write(place.at("lowers/file"), "").unwrap();
        let store = |line: &str| place.sh(&format!("UNIONMOUNT_ROOT=$PWD/store ./unionmount {line}")).ok();
        store("import a pictures:1");
        store("create --name web-of-one pictures:1");
        let mut shell = Shell::start(&place, name, command);
        shell.completes("unionmount expl", "unionmount explain ");
        shell.completes("unionmount image insp", "unionmount image inspect ");
        // Beyond the colon, which parts words in bash.
        shell.completes("unionmount history pict", "unionmount history pictures:1 ");
        shell.completes("unionmount history pictures:", "unionmount history pictures:1 ");
        shell.completes("unionmount rm web", "unionmount rm web-of-one ");
        shell.completes("unionmount --root store rm web", "unionmount --root store rm web-of-one ");
        shell.completes("unionmount -o ro,noxa", "unionmount -o ro,noxattrs ");
        shell.completes("unionmount --lower lowers/o", "--lower lowers/one/");
        shell.completes("unionmount --lower a:lowers/o", "--lower a:lowers/one/");
        shell.completes("unionmount images --filter dang", "--filter dangling=");
        shell.completes("unionmount load --max-s", "load --max-size ");
        shell.offers("unionmount images --filter ", &["dangling=", "label=", "reference="]);
        shell.offers("unionmount image ", &["ls", "inspect", "history"]);
    }
}

#[test]
fn what_a_shell_is_told() {
    let place = Place::new();
    let told = |words: &str| {
        let at = words.split(' ').count() - 1;
        let quoted: Vec<String> = words.split(' ').map(|word| format!("'{word}'")).collect();
        let line = format!(
            "UNIONMOUNT_ROOT=$PWD/store ./unionmount completions bash --at {at} -- {}",
            quoted.join(" ")
        );
        let out = place.sh(&line).ok().out;
        out.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let verbs = told("unionmount ");
    assert!(verbs.contains(&"explain".to_owned()) && verbs.contains(&"umount".to_owned()), "{verbs:?}");
    assert!(!verbs.iter().any(|word| word.ends_with('/')), "the first word is a verb: {verbs:?}");
    // Nothing that is hidden, not even where nothing else is left.
    assert_eq!(told("unionmount --hol"), Vec::<String>::new());
    assert_eq!(told("unionmount images --al"), Vec::<String>::new());
    // Behind an option comes a mount point.
    assert_eq!(told("unionmount --lower a m"), ["mnt/"]);
    assert!(!place.at("store").exists(), "a question makes no store");
}
