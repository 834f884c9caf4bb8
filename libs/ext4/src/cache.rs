//! Metadata blocks in memory.
//!
//! A block's bytes are an `Arc`: a commit takes a reference instead of a copy, and who changes the block while that reference
//! is held copies it first ([`Arc::make_mut`]). So a transaction is frozen in time proportional to its number of blocks, and
//! nothing is copied that does not change meanwhile.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::csum::BlockSum;
use crate::device::BlockDevice;
use crate::error::Result;

/// A block of metadata.
#[derive(Debug)]
pub struct Buf {
    /// Its number.
    pub block: u64,
    inner: RwLock<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub data: Arc<[u8]>,
    /// What is computed when a transaction that changed the block commits.
    pub sum: BlockSum,
    /// The transaction that changed it last; 0 for none.
    pub tid: u64,
}

impl Buf {
    fn new(block: u64, data: Arc<[u8]>) -> Arc<Buf> {
        Arc::new(Buf { block, inner: RwLock::new(Inner { data, sum: BlockSum::None, tid: 0 }) })
    }

    /// Its bytes.
    pub fn read(&self) -> MappedRwLockReadGuard<'_, [u8]> {
        RwLockReadGuard::map(self.inner.read(), |inner| &*inner.data)
    }

    pub(crate) fn lock(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write()
    }
}

/// Where a block's newest committed bytes are when they are not at home on the device yet.
pub trait Overlay {
    /// The bytes, if there are any.
    fn committed(&self, block: u64) -> Option<Arc<[u8]>>;
}

const SHARDS: usize = 32;

/// All metadata blocks in memory.
pub struct Cache {
    dev: Arc<dyn BlockDevice>,
    block_size: usize,
    shards: Vec<Mutex<HashMap<u64, Arc<Buf>>>>,
    /// The most blocks that a shard keeps without need.
    shard_limit: usize,
}

impl Cache {
    /// An empty cache that keeps about `limit` bytes.
    pub fn new(dev: Arc<dyn BlockDevice>, block_size: usize, limit: usize) -> Cache {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Cache { dev, block_size, shards, shard_limit: (limit / block_size / SHARDS).max(8) }
    }

    fn shard(&self, block: u64) -> &Mutex<HashMap<u64, Arc<Buf>>> {
        &self.shards[(block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as usize]
    }

    /// A block, read from the device if it is not here. `check` looks at what was read, once.
    ///
    /// # Errors
    /// The device's, or that of `check`.
    pub fn get(
        &self,
        block: u64,
        overlay: &dyn Overlay,
        check: impl FnOnce(&[u8]) -> Result<BlockSum>,
    ) -> Result<Arc<Buf>> {
        // The shard stays locked while its block is read: two readers cannot bring in two versions.
        let mut shard = self.shard(block).lock();
        if let Some(buf) = shard.get(&block) {
            return Ok(buf.clone());
        }
        let data = match overlay.committed(block) {
            Some(data) => data,
            None => read_block(&*self.dev, block, self.block_size)?,
        };
        let sum = check(&data)?;
        let buf = Buf::new(block, data);
        buf.lock().sum = sum;
        self.insert(&mut shard, buf.clone());
        Ok(buf)
    }

    /// A block whose contents on the device mean nothing, zeroed.
    pub fn get_new(&self, block: u64, sum: BlockSum) -> Arc<Buf> {
        let buf = Buf::new(block, vec![0; self.block_size].into());
        buf.lock().sum = sum;
        let mut shard = self.shard(block).lock();
        shard.remove(&block);
        self.insert(&mut shard, buf.clone());
        buf
    }

    fn insert(&self, shard: &mut HashMap<u64, Arc<Buf>>, buf: Arc<Buf>) {
        if shard.len() >= self.shard_limit {
            // What a transaction or a caller holds stays; of the rest half goes, in the map's order, which is random.
            let mut drop = shard.len() / 2;
            shard.retain(|_, buf| {
                let goes = drop > 0 && Arc::strong_count(buf) == 1;
                drop -= usize::from(goes);
                !goes
            });
        }
        shard.insert(buf.block, buf);
    }

    /// Forgets a block that is metadata no more.
    pub fn forget(&self, block: u64) {
        self.shard(block).lock().remove(&block);
    }
}

/// Reads a block from a device.
///
/// # Errors
/// The device's.
pub fn read_block(dev: &dyn BlockDevice, block: u64, block_size: usize) -> io::Result<Arc<[u8]>> {
    let mut data: Arc<[u8]> = std::iter::repeat_n(0, block_size).collect();
    let bytes = Arc::get_mut(&mut data).expect("nobody else has it yet");
    let offset = block.checked_mul(block_size as u64).ok_or(io::ErrorKind::InvalidInput)?;
    dev.read_at(offset, bytes)?;
    Ok(data)
}
