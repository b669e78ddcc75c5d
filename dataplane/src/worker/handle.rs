//! The thread of a worker, and how others talk to it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, bounded, unbounded};

use super::{Processor, Worker, WorkerConfig};
use crate::batch::PortId;
use crate::io::Port;
use crate::io::frame::{Chunks, FramePool};

/// The thread that runs a worker, as seen by those who open and close its ports.
///
/// When the handle is dropped, the worker ends, and its ports and memory with it.
#[derive(Debug)]
pub struct WorkerHandle<P, E> {
    commands: Sender<Command<P>>,
    wakeup: Arc<OwnedFd>,
    thread: Option<JoinHandle<Worker<P, E>>>,
    core: Option<usize>,
}

/// The worker's thread is gone: it has panicked.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the worker has died")]
pub struct WorkerDied;

impl<P: Port + Send + 'static, E: Processor + Send + 'static> WorkerHandle<P, E> {
    /// Starts a worker.
    ///
    /// # Errors
    /// When there is no thread, or no event descriptor, to be had.
    pub fn start(config: WorkerConfig, processor: E, pool: FramePool) -> io::Result<WorkerHandle<P, E>> {
        let (commands, listener) = unbounded();
        let (report, pinned) = bounded(1);
        let mut worker = Worker::new(config, processor, pool)?;
        let wakeup = Arc::clone(&worker.wakeup);
        let name = format!("worker-{}", worker.config.index);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _ = report.send(worker.pin());
            worker.serve(&listener);
            worker
        })?;
        let core = pinned.recv().unwrap_or_default();
        Ok(WorkerHandle { commands, wakeup, thread: Some(thread), core })
    }

    /// The core that the worker stays on, or `None` if it could not be pinned to one.
    pub fn core(&self) -> Option<usize> {
        self.core
    }

    /// Has the worker serve a port from now on. Hands it back if the worker has one of this number already, or
    /// cannot sleep on it.
    ///
    /// # Errors
    /// When the worker has died.
    pub fn add_port(&self, id: PortId, port: P) -> Result<Result<(), P>, WorkerDied> {
        self.ask(|reply| Command::AddPort { id, port, reply })
    }

    /// Has the worker let go of a port: it handles no more of its frames, and frames that would leave by it
    /// are dropped. `None` if there is no such port.
    ///
    /// # Errors
    /// When the worker has died.
    pub fn remove_port(&self, id: PortId) -> Result<Option<P>, WorkerDied> {
        self.ask(|reply| Command::RemovePort { id, reply })
    }

    /// Gives the worker's pool the chunks of a closed port back.
    ///
    /// # Errors
    /// When the worker has died.
    pub fn give_back(&self, chunks: Chunks) -> Result<(), WorkerDied> {
        self.send(Command::GiveBack(chunks))
    }

    /// Ends the worker, and returns it with all that it has.
    ///
    /// # Errors
    /// When the worker has died.
    pub fn stop(mut self) -> Result<Worker<P, E>, WorkerDied> {
        self.send(Command::Stop)?;
        let thread = self.thread.take().expect("there until here");
        thread.join().map_err(|_| WorkerDied)
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command<P>) -> Result<T, WorkerDied> {
        let (reply, answer) = bounded(1);
        self.send(command(reply))?;
        answer.recv().map_err(|_| WorkerDied)
    }

    fn send(&self, command: Command<P>) -> Result<(), WorkerDied> {
        self.commands.send(command).map_err(|_| WorkerDied)?;
        ring(&self.wakeup);
        Ok(())
    }
}

impl<P, E> Drop for WorkerHandle<P, E> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.commands.send(Command::Stop);
            ring(&self.wakeup);
            let _ = thread.join();
        }
    }
}

/// What a worker is asked between two batches.
#[derive(Debug)]
pub(super) enum Command<P> {
    AddPort { id: PortId, port: P, reply: Sender<Result<(), P>> },
    RemovePort { id: PortId, reply: Sender<Option<P>> },
    GiveBack(Chunks),
    Stop,
}

/// Wakes who waits at the other end of an event descriptor or a pipe.
pub(super) fn ring(bell: &OwnedFd) {
    // It fails only where very many rings have not been heard yet.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}
