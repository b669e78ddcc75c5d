//! Connections that stay open and are used all the time, so that whatever happens to them is noticed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use wirelane::traffic::Session;

/// Sessions that ask their servers in turn, on a thread of their own, until this is finished or dropped.
#[derive(Debug)]
pub struct Load {
    stop: Stop,
    thread: JoinHandle<Report>,
}

/// Says on being dropped that it is time to stop.
#[derive(Debug)]
struct Stop(Arc<AtomicBool>);

/// How the sessions fared.
#[derive(Debug, Default)]
pub struct Report {
    /// Questions answered by the server that the session began with.
    pub answers: u64,
    /// The longest that an answer took. A lost packet shows here: with nothing else under way on its connection,
    /// it is sent again only after the kernel's least timeout, 200 ms.
    pub longest: Duration,
    /// Sessions that ended or changed their server: the server's name, and what happened.
    pub broken: Vec<String>,
}

impl Load {
    /// Starts asking. The sessions are given with the names of their servers.
    pub fn start(sessions: Vec<(String, Session)>) -> Load {
        let stop = Stop(Arc::default());
        let stopped = Arc::clone(&stop.0);
        let thread = thread::spawn(move || ask_until(&stopped, sessions));
        Load { stop, thread }
    }

    /// Stops, and says how it went.
    pub fn finish(self) -> Report {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ask_until(stop: &AtomicBool, mut sessions: Vec<(String, Session)>) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) && !sessions.is_empty() {
        sessions.retain_mut(|(server, session)| {
            let asked = Instant::now();
            let answered = session.ask();
            report.longest = report.longest.max(asked.elapsed());
            match answered {
                Ok(answer) if answer.name == *server => {
                    report.answers += 1;
                    true
                }
                Ok(answer) => {
                    report.broken.push(format!("{server}: {} answered", answer.name));
                    false
                }
                Err(error) => {
                    report.broken.push(format!("{server}: {error}"));
                    false
                }
            }
        });
        thread::sleep(Duration::from_millis(1));
    }
    report
}

/// How often each name occurs, as "web-1 11, web-2 9".
pub fn spread<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_insert(0_u32) += 1;
    }
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
