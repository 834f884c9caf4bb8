//! Who may set modes: masters, authentication (`drm_auth.c`) and leases (`drm_lease.c`).
//!
//! A *master* is a session: the files that were opened while it was the card's, or that a lease made. One is *current*; its
//! own file sets modes. A lease is a master under another, its lessor, and reaches only the objects that were lent to it; it
//! is current as long as its lessor is.

use std::collections::{BTreeMap, BTreeSet};

use linux_uapi::Errno;
use scheme::{Cx, FileToInstall, Opened, Ready};

use crate::card::{Card, Object, Open};
use crate::driver::PlaneKind;
use crate::error::{Ids, Outcome};
use crate::file::{Fh, File};
use crate::uapi::*;

/// A session on the card (`struct drm_master`).
#[derive(Debug, Default)]
pub(crate) struct Master {
    /// Files that belong to it.
    pub(crate) files: usize,
    /// Bus name, once `SET_VERSION` asked for it.
    pub(crate) unique: Option<String>,
    pub(crate) magics: BTreeMap<u32, Fh>,
    pub(crate) magic_ids: Ids,
    /// The master that lent it objects.
    pub(crate) lessor: Option<u32>,
    /// Its number as a lessee.
    pub(crate) lessee_id: u32,
    /// The objects that were lent to it.
    pub(crate) leased: BTreeSet<u32>,
    pub(crate) lessee_ids: Ids,
}

impl Card {
    /// Makes a master; it has no files yet.
    fn new_master(&mut self) -> u32 {
        let id = self.next_master;
        self.next_master += 1;
        self.masters.insert(id, Master::default());
        id
    }

    fn join_master(&mut self, fh: Fh, master: u32) -> Result<(), Errno> {
        self.leave_master(fh);
        self.masters.get_mut(&master).ok_or(Errno::EINVAL)?.files += 1;
        self.file_mut(fh)?.master = Some(master);
        Ok(())
    }

    /// A file belongs to no master any more; a master without files ends, and a lease gives back what was lent.
    fn leave_master(&mut self, fh: Fh) {
        let Ok(file) = self.file_mut(fh) else { return };
        let magic = std::mem::take(&mut file.magic);
        let Some(id) = file.master.take() else { return };
        let Some(master) = self.masters.get_mut(&id) else { return };
        if magic != 0 {
            master.magics.remove(&magic);
            master.magic_ids.release(magic);
        }
        master.files -= 1;
        self.end_master(id);
    }

    /// Drops a master that has neither files nor lessees.
    fn end_master(&mut self, id: u32) {
        let has_lessees = self.masters.values().any(|master| master.lessor == Some(id));
        let Some(master) = self.masters.get(&id) else { return };
        if master.files != 0 || has_lessees || self.master == Some(id) {
            return;
        }
        let (lessor, lessee_id) = (master.lessor, master.lessee_id);
        self.masters.remove(&id);
        if let Some(lessor) = lessor {
            if let Some(master) = self.masters.get_mut(&lessor) {
                master.lessee_ids.release(lessee_id);
            }
            self.end_master(lessor);
        }
    }

    /// A client opens the primary node: the first becomes master (`drm_master_open`).
    pub(crate) fn master_open(&mut self, fh: Fh) -> Result<(), Errno> {
        match self.master {
            Some(master) => self.join_master(fh, master),
            None => self.set_new_master(fh),
        }
    }

    /// `drm_new_set_master`: a session of its own, and current.
    fn set_new_master(&mut self, fh: Fh) -> Result<(), Errno> {
        let master = self.new_master();
        self.join_master(fh, master)?;
        self.master = Some(master);
        let file = self.file_mut(fh)?;
        file.is_master = true;
        file.was_master = true;
        file.authenticated = true;
        Ok(())
    }

    /// A client closes the primary node (`drm_master_release`).
    pub(crate) fn master_release(&mut self, fh: Fh) {
        let Ok(file) = self.file(fh) else { return };
        if let (true, Some(master)) = (file.is_master, file.master) {
            if self.master == Some(master) {
                self.master = None;
            }
            if self.masters.get(&master).is_some_and(|master| master.lessor.is_none()) {
                self.revoke_leases_of(master);
            } else {
                self.lease_ended(master);
            }
        }
        self.leave_master(fh);
    }

    /// The file may set modes now (`drm_is_current_master`).
    pub(crate) fn is_current_master(&self, fh: Fh) -> bool {
        let Ok(file) = self.file(fh) else { return false };
        let Some(master) = file.master else { return false };
        let owner = self.masters.get(&master).and_then(|master| master.lessor).unwrap_or(master);
        file.is_master && self.master == Some(owner)
    }

    /// `drm_master_check_perm`: who was master before may be again, in the same process; else it takes `CAP_SYS_ADMIN`.
    fn master_permission(&self, cx: &Cx<'_>, fh: Fh) -> Result<(), Errno> {
        let file = self.file(fh)?;
        if (file.was_master && file.pid == cx.pid) || cx.uid == 0 { Ok(()) } else { Err(Errno::EACCES) }
    }

    pub(crate) fn set_master(&mut self, cx: &Cx<'_>, fh: Fh) -> Outcome<i32> {
        self.master_permission(cx, fh)?;
        if self.is_current_master(fh) {
            return Ok(0);
        }
        if self.master.is_some() {
            return Err(Errno::EBUSY.into());
        }
        let file = self.file(fh)?;
        let master = file.master.ok_or(Errno::EINVAL)?;
        if !file.is_master {
            self.set_new_master(fh)?;
            return Ok(0);
        }
        if self.masters.get(&master).is_some_and(|master| master.lessor.is_some()) {
            return Err(Errno::EINVAL.into());
        }
        self.master = Some(master);
        self.file_mut(fh)?.was_master = true;
        Ok(0)
    }

    pub(crate) fn drop_master(&mut self, cx: &Cx<'_>, fh: Fh) -> Outcome<i32> {
        self.master_permission(cx, fh)?;
        let master = self.file(fh)?.master;
        let leased = master.and_then(|id| self.masters.get(&id)).is_some_and(|master| master.lessor.is_some());
        if !self.is_current_master(fh) || leased {
            return Err(Errno::EINVAL.into());
        }
        self.master = None;
        Ok(0)
    }

    pub(crate) fn get_magic(&mut self, fh: Fh, auth: &mut Auth) -> Outcome<i32> {
        let file = self.file(fh)?;
        if file.magic == 0 {
            let id = file.master.ok_or(Errno::EINVAL)?;
            let master = self.masters.get_mut(&id).ok_or(Errno::EINVAL)?;
            let magic = master.magic_ids.allocate(u32::MAX >> 1)?;
            master.magics.insert(magic, fh);
            self.file_mut(fh)?.magic = magic;
        }
        auth.magic = self.file(fh)?.magic;
        Ok(0)
    }

    pub(crate) fn auth_magic(&mut self, fh: Fh, auth: &Auth) -> Outcome<i32> {
        let id = self.file(fh)?.master.ok_or(Errno::EINVAL)?;
        // The magic is spent, as the replaced IDR entry is in Linux.
        let master = self.masters.get_mut(&id).ok_or(Errno::EINVAL)?;
        let client = master.magics.remove(&auth.magic).ok_or(Errno::EINVAL)?;
        self.file_mut(client)?.authenticated = true;
        Ok(0)
    }

    /// The file's session reaches the object (`_drm_lease_held`).
    pub(crate) fn lease_held(&self, fh: Fh, object: u32) -> bool {
        let master = self.file(fh).ok().and_then(|file| file.master).and_then(|id| self.masters.get(&id));
        match master {
            Some(master) if master.lessor.is_some() => master.leased.contains(&object),
            _ => true,
        }
    }

    /// A mask of CRTCs with those left out that the file does not reach, the others numbered anew
    /// (`drm_lease_filter_crtcs`).
    pub(crate) fn filter_crtcs(&self, fh: Fh, mask: u32) -> u32 {
        let held = (0..self.crtcs.len()).filter(|&crtc| self.lease_held(fh, self.crtcs[crtc].id));
        held.enumerate().filter(|&(_, crtc)| mask & 1 << crtc != 0).fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    fn file_master(&self, fh: Fh) -> Result<u32, Errno> {
        self.file(fh)?.master.ok_or(Errno::EINVAL)
    }

    pub(crate) fn create_lease(&mut self, cx: &Cx<'_>, fh: Fh, lease: &mut CreateLease) -> Outcome<i32> {
        const O_CLOEXEC: u32 = DRM_CLOEXEC;
        const O_NONBLOCK: u32 = 0o4000;
        const O_RDWR: u32 = 2;
        let lessor = self.file_master(fh)?;
        if self.masters.get(&lessor).is_none_or(|master| master.lessor.is_some()) {
            return Err(Errno::EINVAL.into());
        }
        if lease.flags & !(O_CLOEXEC | O_NONBLOCK) != 0 {
            return Err(Errno::EINVAL.into());
        }
        if lease.object_count as usize > self.objects.len() {
            return Err(Errno::EINVAL.into());
        }
        let ids: Vec<u32> = cx.read_slice(lease.object_ids, lease.object_count as usize)?;
        let leased = self.leased_objects(fh, lessor, &ids)?;

        let lessee_id = self.masters.get_mut(&lessor).ok_or(Errno::EINVAL)?.lessee_ids.allocate(u32::MAX >> 1)?;
        let master = self.new_master();
        if let Some(entry) = self.masters.get_mut(&master) {
            entry.lessor = Some(lessor);
            entry.lessee_id = lessee_id;
            entry.leased = leased;
        }
        let file = File { pid: cx.pid, uid: cx.uid, is_master: true, authenticated: true, ..File::default() };
        let lessee = self.add_file(Open::Client(Box::new(file)));
        self.join_master(lessee, master)?;
        let opened = Opened::new(lessee, Ready::empty());
        let o_flags = O_RDWR | lease.flags;
        let file = FileToInstall { node: self.card_cookie(), opened, o_flags };
        match cx.channel.install_file(cx.unique, &file) {
            Ok(fd) => {
                lease.fd = fd as u32;
                lease.lessee_id = lessee_id;
                Ok(0)
            }
            Err(errno) => {
                self.leave_master(lessee);
                self.remove_file(lessee);
                Err(errno.into())
            }
        }
    }

    /// Checks what a lease asks for, and adds the planes that a client without universal planes does not see.
    fn leased_objects(&self, fh: Fh, lessor: u32, ids: &[u32]) -> Result<BTreeSet<u32>, Errno> {
        let universal = self.file(fh)?.caps.universal_planes;
        let mut leased = BTreeSet::new();
        let (mut crtcs, mut connectors, mut planes) = (0, 0, 0);
        for &id in ids {
            let object = self.object(fh, id)?;
            match object {
                Object::Crtc(crtc) => {
                    crtcs += 1;
                    if !universal {
                        let crtc = &self.crtcs[crtc];
                        leased.insert(self.planes[crtc.primary].id);
                        leased.extend(crtc.cursor.map(|plane| self.planes[plane].id));
                    }
                }
                Object::Connector(_) => connectors += 1,
                Object::Plane(_) => planes += 1,
                _ => return Err(Errno::EINVAL),
            }
            if !leased.insert(id) && universal {
                return Err(Errno::ENOSPC);
            }
        }
        if crtcs == 0 || connectors == 0 || universal && planes == 0 {
            return Err(Errno::EINVAL);
        }
        let lent = |id: &u32| self.masters.values().any(|m| m.lessor == Some(lessor) && m.leased.contains(id));
        if leased.iter().any(lent) {
            return Err(Errno::EBUSY);
        }
        Ok(leased)
    }

    pub(crate) fn list_lessees(&self, cx: &Cx<'_>, fh: Fh, list: &mut ListLessees) -> Outcome<i32> {
        if list.pad != 0 {
            return Err(Errno::EINVAL.into());
        }
        let lessor = self.file_master(fh)?;
        // A lease whose objects were all taken back is not listed.
        let lessees: Vec<u32> = self
            .masters
            .values()
            .filter(|master| master.lessor == Some(lessor) && !master.leased.is_empty())
            .map(|master| master.lessee_id)
            .collect();
        let room = (list.count_lessees as usize).min(lessees.len());
        for (index, lessee) in lessees[..room].iter().enumerate() {
            cx.write_value(list.lessees_ptr.wrapping_add(index as u64 * 4), lessee)?;
        }
        list.count_lessees = lessees.len() as u32;
        Ok(0)
    }

    pub(crate) fn get_lease(&self, cx: &Cx<'_>, fh: Fh, lease: &mut GetLease) -> Outcome<i32> {
        if lease.pad != 0 {
            return Err(Errno::EINVAL.into());
        }
        let master = self.masters.get(&self.file_master(fh)?).ok_or(Errno::EINVAL)?;
        let mut objects: Vec<u32> = if master.lessor.is_some() {
            master.leased.iter().copied().collect()
        } else {
            self.objects.iter().filter(|(_, object)| object.leasable()).map(|(&id, _)| id).collect()
        };
        objects.sort_unstable();
        let room = (lease.count_objects as usize).min(objects.len());
        for (index, object) in objects[..room].iter().enumerate() {
            cx.write_value(lease.objects_ptr.wrapping_add(index as u64 * 4), object)?;
        }
        lease.count_objects = objects.len() as u32;
        Ok(0)
    }

    pub(crate) fn revoke_lease(&mut self, fh: Fh, revoke: &RevokeLease) -> Outcome<i32> {
        let lessor = self.file_master(fh)?;
        let lessee = self
            .masters
            .iter_mut()
            .find(|(_, master)| master.lessor == Some(lessor) && master.lessee_id == revoke.lessee_id)
            .ok_or(Errno::ENOENT)?;
        lessee.1.leased.clear();
        Ok(0)
    }

    fn revoke_leases_of(&mut self, lessor: u32) {
        for master in self.masters.values_mut().filter(|master| master.lessor == Some(lessor)) {
            master.leased.clear();
        }
    }

    /// The file of a lease is closed: its lessor gets the objects back and is told (`drm_lease_destroy`).
    fn lease_ended(&mut self, lessee: u32) {
        if let Some(master) = self.masters.get_mut(&lessee) {
            master.leased.clear();
        }
        self.lease_event = true;
    }

    /// Whether clients without `UNIVERSAL_PLANES` see a plane, and para-virtual cursors.
    pub(crate) fn plane_visible(&self, fh: Fh, plane: usize) -> bool {
        let Ok(file) = self.file(fh) else { return false };
        let kind = self.topology.planes[plane].kind;
        if kind != PlaneKind::Overlay && !file.caps.universal_planes {
            return false;
        }
        if kind == PlaneKind::Cursor && self.features.cursor_hotspot && file.caps.atomic && !file.caps.cursor_hotspot {
            return false;
        }
        self.lease_held(fh, self.planes[plane].id)
    }
}
