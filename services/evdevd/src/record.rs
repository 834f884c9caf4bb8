//! What the server records of itself, and how a successor takes it over.
//!
//! Devices are recorded with their state (keys, axes, LEDs, the packet in the making), each reader's queue by itself, so that a
//! packet costs its device and its readers. Force-feedback requests that wait for a driver go on waiting.

use std::collections::BTreeSet;
use std::io;

use input_core::{Client, ClientId};
use scheme::Table;

use crate::{
    effects::{Owed, Waiting},
    server::{DeviceId, File, Published, Server},
};

const SERVER: Table = 0;
const FILE: Table = 1;
const DEVICE: Table = 2;
/// Readers, by open file.
const CLIENT: Table = 3;
const WAITING: Table = 4;
/// Answers that are due, by request.
const OWED: Table = 5;

/// What was touched since the last record.
#[derive(Default)]
pub(crate) struct Touched {
    pub(crate) files: BTreeSet<u64>,
    /// Devices, with their readers.
    pub(crate) devices: BTreeSet<DeviceId>,
}

impl Server {
    /// Takes over from a predecessor. False: there was none.
    pub(crate) fn restore(&mut self) -> io::Result<bool> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a reader of no device");
        let Some(next_device) = self.journal.get(SERVER, 0)? else { return Ok(false) };
        self.next_device = next_device;
        self.devices = self.journal.all::<Published>(DEVICE)?.into_iter().collect();
        self.files = self.journal.all::<File>(FILE)?.into_iter().collect();
        for (fh, client) in self.journal.all::<Client>(CLIENT)? {
            let Some(File::Event(id)) = self.files.get(&fh) else { return Err(invalid()) };
            self.devices.get_mut(id).ok_or_else(invalid)?.device.restore(ClientId(fh), client);
        }
        self.waiting = self.journal.all::<Waiting>(WAITING)?.into_iter().map(|(_, waiting)| waiting).collect();
        self.outbox = self.journal.all::<Owed>(OWED)?.into_iter().map(|(_, owed)| owed).collect();
        self.resumed = self.waiting.iter().filter_map(|waiting| waiting.unique).collect();
        self.resumed.extend(self.outbox.iter().map(|owed| owed.unique));
        Ok(true)
    }

    /// The answer to the last request has reached the kernel.
    ///
    /// # Panics
    /// As [`Server::record`].
    pub(crate) fn settle_record(&mut self) {
        if let Err(error) = self.journal.settle() {
            panic!("the journal cannot be written: {error}");
        }
    }

    /// Records what has changed, as the effect of request `unique`, or of none (0).
    ///
    /// # Panics
    /// When it cannot be recorded: a server must not answer for what its successor will not know.
    pub(crate) fn record(&mut self, unique: u64) {
        if let Err(error) = self.write_record().and_then(|()| self.journal.commit(unique)) {
            panic!("the journal cannot be written: {error}");
        }
    }

    fn write_record(&mut self) -> io::Result<()> {
        let Touched { files, devices } = std::mem::take(&mut self.touched);
        let journal = &mut self.journal;
        journal.put(SERVER, 0, &self.next_device)?;
        for fh in files {
            match self.files.get(&fh) {
                Some(file) => journal.put(FILE, fh, file)?,
                None => {
                    journal.remove(FILE, fh);
                    journal.remove(CLIENT, fh);
                }
            }
        }
        for id in devices {
            let Some(published) = self.devices.get(&id) else {
                journal.remove(DEVICE, id);
                continue;
            };
            journal.put(DEVICE, id, published)?;
            for client in published.device.clients() {
                if let Some(reader) = published.device.client(client) {
                    journal.put(CLIENT, client.0, reader)?;
                }
            }
        }
        let mut gone: BTreeSet<u64> = journal.ids(WAITING).collect();
        for waiting in &self.waiting {
            let key = waiting.device << 8 | u64::from(waiting.request);
            gone.remove(&key);
            journal.put(WAITING, key, waiting)?;
        }
        gone.into_iter().for_each(|key| journal.remove(WAITING, key));
        let mut gone: BTreeSet<u64> = journal.ids(OWED).collect();
        for owed in &self.outbox {
            gone.remove(&owed.unique);
            journal.put(OWED, owed.unique, owed)?;
        }
        gone.into_iter().for_each(|unique| journal.remove(OWED, unique));
        Ok(())
    }
}
