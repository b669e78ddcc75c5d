//! Which backend a client of a Service had last: session affinity by client address.
//!
//! A client is one to a port of a Service, whichever of its addresses it uses and from whatever port; its backend is kept
//! for as long as the Service says, from its latest connection on. What is kept lies in a file of its own beside those of
//! the flows, and not only in the flows: it is to outlive a client's connections. There is room for
//! [`CLIENTS`]; if they are more, those go who have not come for longest.

use std::io;
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
use std::path::Path;

#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
use super::flows::{Contents, FlowFile, Found, OpenError, Stored};
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
use super::recent::sets_for;
use super::recent::{Recent, Set};
use super::services::{Backend, Backends, Id};
use crate::wire::Addr;

/// How many clients of Services' ports are remembered.
pub const CLIENTS: usize = 1 << 17;

/// Clients and the backends that they had last. Shared by all workers.
#[derive(Debug)]
pub struct Affinity(Recent<3, 1, Memory>);

#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
type Memory = Stored<Set<3, 1>>;
#[cfg(any(wirelane_loom, wirelane_shuttle))]
type Memory = Box<[Set<3, 1>]>;

#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
impl Affinity {
    /// Nobody, in memory of this process.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(seed: u64) -> io::Result<Affinity> {
        Ok(Affinity(Recent::over(Stored::anonymous(sets_for(CLIENTS) as u32)?, seed)))
    }

    /// Those that another process has left in the file at `path`, if it fits. Says what was found. `seed` is for a new
    /// file.
    ///
    /// # Errors
    /// When another process has the file, or there is not enough memory for it.
    pub fn open(path: &Path, seed: u64) -> Result<(Affinity, Found), OpenError> {
        let capacity = sets_for(CLIENTS) as u32;
        let contents = Contents { magic: *b"wl-affin", version: 1, family: 0, capacity };
        let (memory, seed, found) = FlowFile::open(path, contents, seed)?;
        Ok((Affinity(Recent::over(memory, seed)), found))
    }
}

#[cfg(any(wirelane_loom, wirelane_shuttle))]
impl Affinity {
    /// Nobody.
    ///
    /// # Errors
    /// Never.
    pub fn new(seed: u64) -> io::Result<Affinity> {
        Ok(Affinity(Recent::new(CLIENTS, seed)))
    }
}

impl Affinity {
    /// The backend of these that a client of a service port had not longer than `lifetime` milliseconds ago.
    #[inline]
    pub fn recall<'a>(
        &self,
        client: &Addr,
        port: Id,
        among: &'a Backends,
        now: u32,
        lifetime: u32,
    ) -> Option<&'a Backend> {
        let [backend] = self.0.recall(&key(client, port), now, lifetime)?;
        among.find(backend as Id, (backend >> 32) as u32)
    }

    /// A client of a service port gets this backend of these, now.
    #[inline]
    pub fn remember(&self, client: &Addr, port: Id, backend: &Backend, among: &Backends, now: u32) {
        let backend = u64::from(backend.id) | u64::from(among.place(backend)) << 32;
        self.0.remember(&key(client, port), &[backend], now);
    }
}

fn key(client: &Addr, port: Id) -> [u64; 3] {
    let half = |at: usize| u64::from_ne_bytes(client.0[at..at + 8].try_into().expect("8 bytes of 16"));
    [half(0), half(8), port.into()]
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::super::objects::Algorithm;
    use super::*;

    fn backends(ids: &[Id]) -> Backends {
        let backend = |id: &Id| (Backend { id: *id, address: Addr::v4([10, 0, 0, *id as u8]), port: 80 }, 1);
        Backends::new(&ids.iter().map(backend).collect::<Vec<_>>(), Algorithm::Random, ids.len(), &[])
    }

    #[test]
    fn a_client_keeps_its_backend_of_one_port_as_long_as_that_is_there() {
        let affinity = Affinity::new(1).unwrap();
        let (client, other) = (Addr::v4([198, 51, 100, 7]), Addr::v4([198, 51, 100, 8]));
        let all = backends(&[1, 2, 3]);
        let id = |client, port, among: &Backends, now| {
            affinity.recall(client, port, among, now, 1000).map(|backend| backend.id)
        };
        affinity.remember(&client, 7, &all.list()[1], &all, 100);
        assert_eq!(id(&client, 7, &all, 1100), Some(2));
        assert_eq!(
            (id(&client, 7, &all, 1101), id(&client, 8, &all, 100), id(&other, 7, &all, 100)),
            (None, None, None)
        );
        // Others come and go beside it, then it goes itself.
        assert_eq!(id(&client, 7, &backends(&[2, 9]), 100), Some(2));
        assert_eq!(id(&client, 7, &backends(&[1, 3]), 100), None);
        // Each connection lets it begin anew, with whichever it is.
        affinity.remember(&client, 7, &all.list()[2], &all, 900);
        assert_eq!(id(&client, 7, &all, 1900), Some(3));
    }

    #[test]
    fn it_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("affinity.bin");
        let (client, all) = (Addr::v4([198, 51, 100, 7]), backends(&[1, 2, 3]));
        let (affinity, found) = Affinity::open(&path, 1).unwrap();
        assert_eq!(found, Found::Nothing);
        affinity.remember(&client, 7, &all.list()[1], &all, 100);
        let error = Affinity::open(&path, 1).unwrap_err();
        assert!(matches!(error, OpenError::Locked(_)), "{error}");
        drop(affinity);
        let (affinity, found) = Affinity::open(&path, 2).unwrap();
        assert_eq!(found, Found::Flows { closed: true });
        assert_eq!(affinity.recall(&client, 7, &all, 100, 0).map(|backend| backend.id), Some(2));
        drop(affinity);
        std::fs::write(&path, vec![0xa5; 9999]).unwrap();
        let (affinity, found) = Affinity::open(&path, 3).unwrap();
        assert!(matches!(found, Found::Other(_)));
        assert!(affinity.recall(&client, 7, &all, 100, 0).is_none());
    }
}
