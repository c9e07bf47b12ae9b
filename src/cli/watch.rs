//! `unionmount status --watch`: a mount, live.
//!
//! Two threads feed the screen: one hears the trace, from which the hottest paths are made, one counts what is in the
//! layers now and then. The screen asks the daemon for its counters once a second.

mod screen;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event as Key, KeyCode, KeyEventKind, KeyModifiers};

use super::uptime::since;
use super::{Failure, stacks};
use crate::control::client::{Client, ClientError};
use crate::control::mounts::Mount;
use crate::control::protocol::{Status, Told};
use crate::explain::paint::Paint;
use crate::texts::Texts;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::Filter;
use crate::union::lookup::usage::{Budget, Usage, measure};

/// How often the counters are asked for.
const SECOND: Duration = Duration::from_secs(1);
/// How often keys and events are looked at.
const FRAME: Duration = Duration::from_millis(100);
/// How often the layers are counted, and how long that may take.
const COUNTING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// How much of a path's heat is left after a second.
const COOLING: f64 = 0.97;
/// How many paths are kept; colder ones go.
const PATHS: usize = 4096;

/// What the screen shows.
pub(super) struct View {
    texts: &'static Texts,
    mount: Mount,
    /// What the layers are called, where their directories say nothing.
    names: Vec<Option<String>>,
    status: Status,
    /// Requests a second, by kind.
    rates: Vec<(String, f64)>,
    /// All requests a second, the newest last.
    history: VecDeque<u64>,
    heat: HashMap<EscapedPath, f64>,
    told: VecDeque<Told>,
    usage: Option<CountedLayers>,
    paused: bool,
    lost: u64,
    /// Colours are wanted.
    colours: bool,
}

/// What is in the layers, and when it was counted.
struct CountedLayers {
    layers: Vec<Option<Usage>>,
    at: Instant,
}

/// What the threads tell.
enum News {
    Told(Told),
    Usage(Vec<Option<Usage>>),
    Ended(Option<ClientError>),
}

/// Shows the mount until `q` or the end of the mount.
pub(super) fn run(
    texts: &'static Texts,
    mount: &Mount,
    names: &[Option<String>],
) -> Result<ExitCode, Failure> {
    if !super::page::is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::failed("--watch needs a terminal; without one, use `unionmount status --json`"));
    }
    let mut client = Client::connect(mount).map_err(Failure::failed)?;
    let status = client.status().map_err(Failure::failed)?;
    let news = listen(mount, &status)?;
    let mut view = View {
        texts,
        mount: mount.clone(),
        names: names.to_vec(),
        status,
        rates: Vec::new(),
        history: VecDeque::new(),
        heat: HashMap::new(),
        told: VecDeque::new(),
        usage: None,
        paused: false,
        lost: 0,
        colours: Paint::of_stdout().is_on(),
    };
    let terminal = ratatui::try_init();
    let ended = terminal
        .map_err(|error| Failure::failed(format!("cannot set up the terminal: {error}")))
        .and_then(|mut terminal| show(&mut terminal, &mut view, &mut client, &news));
    ratatui::restore();
    ended
}

/// Starts the threads.
fn listen(mount: &Mount, status: &Status) -> Result<Receiver<News>, Failure> {
    // A queue that is full stops the thread, and then the daemon counts what is lost.
    let (send, news) = sync_channel(4096);
    let mut trace =
        Client::connect(mount).and_then(|client| client.trace(Filter::default())).map_err(Failure::failed)?;
    let told = send.clone();
    let spawned = std::thread::Builder::new().spawn(move || {
        let end = loop {
            match trace.next_told() {
                Ok(Some(line)) => {
                    if told.send(News::Told(line)).is_err() {
                        return; // the screen has gone
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        told.send(News::Ended(end)).unwrap_or_default();
    });
    spawned.map_err(Failure::failed)?;
    if mount.is_of_another() {
        // What another user's daemon calls its layers may lead anywhere.
        return Ok(news);
    }
    let (status, since) = (status.clone(), since(status));
    let spawned = std::thread::Builder::new().spawn(move || {
        loop {
            let budget = Budget::of(COUNTING.1);
            let count =
                |directory: &EscapedPath| measure(directory.as_path(), Some(since), budget, &mut |_| ());
            let usage = status.layers.iter().map(|layer| count(&layer.directory)).collect();
            if send.send(News::Usage(usage)).is_err() {
                return;
            }
            std::thread::sleep(COUNTING.0);
        }
    });
    spawned.map_err(Failure::failed)?;
    Ok(news)
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    client: &mut Client,
    news: &Receiver<News>,
) -> Result<ExitCode, Failure> {
    let io = |error: io::Error| Failure::failed(format!("the terminal: {error}"));
    let mut asked = Instant::now();
    loop {
        while let Ok(news) = news.try_recv() {
            match news {
                News::Told(told) => view.hear(told),
                News::Usage(layers) => view.usage = Some(CountedLayers { layers, at: Instant::now() }),
                News::Ended(None) => return Ok(ExitCode::SUCCESS),
                News::Ended(Some(error)) => return Err(Failure::failed(error)),
            }
        }
        if asked.elapsed() >= SECOND {
            match client.status() {
                Ok(status) => view.tick(status, asked.elapsed()),
                Err(ClientError::Ended) => return Ok(ExitCode::SUCCESS),
                Err(error) => return Err(Failure::failed(error)),
            }
            asked = Instant::now();
        }
        terminal.draw(|frame| screen::draw(frame, view)).map_err(io)?;
        if event::poll(FRAME).map_err(io)?
            && let Key::Key(key) = event::read().map_err(io)?
            && key.kind != KeyEventKind::Release
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(ExitCode::SUCCESS),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(ExitCode::SUCCESS);
                }
                KeyCode::Char('c') => view.clear(),
                KeyCode::Char('p' | ' ') => view.paused = !view.paused,
                _ => {}
            }
        }
    }
}

impl View {
    /// Notes that something happened.
    fn hear(&mut self, told: Told) {
        match &told {
            Told::Lost { lost } => self.lost += lost,
            Told::Event(event) => {
                if self.heat.len() >= PATHS {
                    self.heat.retain(|_, heat| *heat > 1.0);
                }
                // What is unlinked has no path to show.
                if self.heat.len() < 2 * PATHS && event.what.path().0.starts_with(b"/") {
                    *self.heat.entry(event.what.path().clone()).or_default() += 1.0;
                }
            }
        }
        if !self.paused {
            self.told.push_back(told);
            if self.told.len() > 200 {
                self.told.pop_front();
            }
        }
    }

    /// Notes that a second has passed.
    fn tick(&mut self, status: Status, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let before = |kind: &String| self.status.requests.get(kind).copied().unwrap_or_default();
        let mut rates: Vec<(String, f64)> = status
            .requests
            .iter()
            .map(|(kind, now)| (kind.clone(), now.saturating_sub(before(kind)) as f64 / seconds))
            .collect();
        rates.sort_by(|a, b| b.1.total_cmp(&a.1));
        self.history.push_back(rates.iter().map(|(_, rate)| *rate).sum::<f64>().round() as u64);
        if self.history.len() > 600 {
            self.history.pop_front();
        }
        self.rates = rates;
        self.status = status;
        stacks::call_layers(&mut self.status.layers, &self.names);
        self.heat.retain(|_, heat| {
            *heat *= COOLING;
            *heat > 0.05
        });
    }

    fn clear(&mut self) {
        self.heat.clear();
        self.told.clear();
        self.history.clear();
        self.lost = 0;
    }
}
