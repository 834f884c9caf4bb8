//! Connectors: what is plugged in, and its modes (`drm_connector.c`, `drm_probe_helper.c`).

use std::rc::Rc;

use scheme::Cx;
use zerocopy::IntoBytes;

use crate::card::{Card, Object};
use crate::driver::{ConnectorSpec, Mode, Probe};
use crate::error::Outcome;
use crate::file::{ClientCaps, Fh};
use crate::modes::{edid::Edid, standard};
use crate::object::Blob;
use crate::property::{self, Key};
use crate::resources::copy_list;
use crate::uapi::*;

/// A connector, and what the last probe said.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) id: u32,
    /// The number of its kind, from 1: the 1 of `Virtual-1`.
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) properties: Vec<Key>,
    pub(crate) connected: bool,
    pub(crate) modes: Vec<Mode>,
    pub(crate) millimetres: (u32, u32),
    pub(crate) edid: Option<Rc<Blob>>,
    /// `DPMS` as user space sees it.
    pub(crate) dpms: u64,
}

impl Connector {
    pub(crate) fn new(id: u32, spec: &ConnectorSpec, number: u32) -> Connector {
        Connector {
            id,
            number,
            name: format!("{}-{number}", spec.kind.name()),
            properties: property::of_connector(spec),
            connected: false,
            modes: Vec::new(),
            millimetres: (0, 0),
            edid: None,
            dpms: DRM_MODE_DPMS_ON,
        }
    }
}

impl Card {
    /// Asks the driver what is plugged in, and makes the list of modes of it. True if something changed.
    pub(crate) fn probe(&mut self, connector: usize) -> bool {
        let probe = self.driver.probe(connector);
        let edid = probe.edid.as_deref().filter(|_| probe.connected).and_then(Edid::parse);
        let modes = if probe.connected { self.modes_of(connector, &probe, edid.as_ref()) } else { Vec::new() };
        let raw = edid.as_ref().map(|edid| edid.raw().to_vec());
        let entry = &self.connectors[connector];
        let same_edid = entry.edid.as_ref().map(|blob| &blob.data) == raw.as_ref();
        let changed = !same_edid || entry.connected != probe.connected || entry.modes != modes;
        if !same_edid {
            // No room for its number: the screen works without.
            let blob = raw.and_then(|raw| self.new_blob(raw).ok());
            self.connectors[connector].edid = blob;
        }
        let entry = &mut self.connectors[connector];
        entry.connected = probe.connected;
        entry.modes = modes;
        entry.millimetres = match (&edid, probe.connected) {
            (Some(edid), _) => edid.millimetres(),
            (None, true) => probe.millimetres,
            (None, false) => (0, 0),
        };
        changed
    }

    fn modes_of(&self, connector: usize, probe: &Probe, edid: Option<&Edid>) -> Vec<Mode> {
        let max = self.features.max_size;
        let mut modes = edid.map(Edid::modes).unwrap_or_default();
        modes.extend(probe.modes.iter().copied());
        if modes.is_empty() {
            modes = standard::no_edid_modes(max.0, max.1);
            if let Some((width, height)) = probe.preferred {
                standard::prefer(&mut modes, width, height);
            }
        }
        let mut kept: Vec<Mode> = Vec::new();
        for mut mode in modes {
            mode.vrefresh = mode.refresh();
            // Interlaced and double-scanned pictures are nothing that a card here makes.
            let good = mode.is_sane()
                && mode.flags & (DRM_MODE_FLAG_INTERLACE | DRM_MODE_FLAG_DBLSCAN) == 0
                && u32::from(mode.hdisplay) <= max.0
                && u32::from(mode.vdisplay) <= max.1
                && self.driver.mode_valid(connector, &mode);
            if !good {
                continue;
            }
            match kept.iter_mut().find(|kept| kept.same_timing(&mode)) {
                Some(same) => same.kind |= mode.kind,
                None => kept.push(mode),
            }
        }
        kept.sort_by(Mode::compare);
        kept
    }

    /// `DRM_IOCTL_MODE_GETCONNECTOR`. The master's question without room for modes makes the card look anew.
    pub(crate) fn get_connector(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut GetConnector) -> Outcome<i32> {
        let connector = self.connector_by_id(fh, request.connector_id)?;
        if request.count_modes == 0 && self.is_current_master(fh) && self.probe(connector) {
            self.connectors_changed.push(connector);
        }
        let caps = self.file(fh)?.caps;
        let (spec, entry) = (&self.topology.connectors[connector], &self.connectors[connector]);
        let encoders: Vec<u32> = spec.encoders.iter().map(|&encoder| self.encoders[encoder]).collect();
        copy_list(cx, &encoders, request.encoders_ptr, &mut request.count_encoders)?;
        let modes: Vec<Mode> = shown_modes(&entry.modes, caps);
        copy_list(cx, &modes, request.modes_ptr, &mut request.count_modes)?;
        let (ids, values) = self.property_values(fh, Object::Connector(connector))?;
        if request.count_props as usize >= ids.len() {
            cx.write_user(request.props_ptr, ids.as_bytes())?;
            cx.write_user(request.prop_values_ptr, values.as_bytes())?;
        }
        request.count_props = ids.len() as u32;
        let encoder = self.state.connectors[connector].encoder;
        request.encoder_id = encoder.map_or(0, |encoder| self.encoders[encoder]);
        request.connector_type = spec.kind as u32;
        request.connector_type_id = entry.number;
        request.connection = if entry.connected { DRM_MODE_CONNECTED } else { DRM_MODE_DISCONNECTED };
        (request.mm_width, request.mm_height) = entry.millimetres;
        request.subpixel = 0;
        Ok(0)
    }

    /// Probes all connectors after a hot-plug. True if one changed.
    pub(crate) fn probe_all(&mut self) -> bool {
        let mut changed = false;
        for connector in 0..self.connectors.len() {
            if self.probe(connector) {
                self.connectors_changed.push(connector);
                changed = true;
            }
        }
        changed
    }
}

/// The modes that a client sees: picture aspect ratios only if it asked for them, and then no two alike.
fn shown_modes(modes: &[Mode], caps: ClientCaps) -> Vec<Mode> {
    let mut shown: Vec<Mode> = Vec::new();
    for mode in modes {
        if mode.flags & DRM_MODE_FLAG_3D_MASK != 0 && !caps.stereo {
            continue;
        }
        let mut mode = *mode;
        if !caps.aspect_ratio {
            mode.flags &= !DRM_MODE_FLAG_PIC_AR_MASK;
            if shown.iter().any(|shown| shown.same_timing(&mode)) {
                continue;
            }
        }
        shown.push(mode);
    }
    shown
}
