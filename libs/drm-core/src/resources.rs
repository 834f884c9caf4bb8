//! What there is: resources, CRTCs, encoders, planes, properties and blobs, as clients ask for them
//! (`drm_mode_config.c`, `drm_mode_object.c`, `drm_property.c`).

use linux_uapi::Errno;
use scheme::Cx;
use zerocopy::{Immutable, IntoBytes};

use crate::card::{Card, Object};
use crate::error::Outcome;
use crate::file::{Fh, limits};
use crate::property::{Key, Property, Values};
use crate::uapi::*;

/// Writes a list where the caller made room for all of it, and says how long it is.
pub(crate) fn copy_list<T: IntoBytes + Immutable>(
    cx: &Cx<'_>,
    list: &[T],
    address: u64,
    count: &mut u32,
) -> Outcome<()> {
    if *count as usize >= list.len() && !list.is_empty() {
        cx.write_user(address, list.as_bytes())?;
    }
    *count = list.len() as u32;
    Ok(())
}

/// Writes as much of a list as there is room for, and says how long it is (`GETRESOURCES`, plane and object lists).
fn copy_some(cx: &Cx<'_>, list: &[u32], address: u64, count: &mut u32) -> Outcome<()> {
    let room = list.len().min(*count as usize);
    cx.write_user(address, list[..room].as_bytes())?;
    *count = list.len() as u32;
    Ok(())
}

/// A name in a fixed field.
fn name_bytes<const N: usize>(name: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let len = name.len().min(N - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

impl Card {
    /// `DRM_IOCTL_MODE_GETRESOURCES`.
    pub(crate) fn get_resources(&self, cx: &Cx<'_>, fh: Fh, res: &mut CardRes) -> Outcome<i32> {
        (res.min_width, res.min_height) = self.features.min_size;
        (res.max_width, res.max_height) = self.features.max_size;
        let held = |id: &u32| self.lease_held(fh, *id);
        let fbs: Vec<u32> = self.file(fh)?.framebuffers.iter().map(|fb| fb.hold.object).collect();
        let crtcs: Vec<u32> = self.crtcs.iter().map(|crtc| crtc.id).filter(held).collect();
        let connectors: Vec<u32> = self.connectors.iter().map(|connector| connector.id).filter(held).collect();
        copy_some(cx, &fbs, res.fb_id_ptr, &mut res.count_fbs)?;
        copy_some(cx, &crtcs, res.crtc_id_ptr, &mut res.count_crtcs)?;
        copy_some(cx, &self.encoders, res.encoder_id_ptr, &mut res.count_encoders)?;
        copy_some(cx, &connectors, res.connector_id_ptr, &mut res.count_connectors)?;
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_GETCRTC`.
    pub(crate) fn get_crtc(&self, fh: Fh, request: &mut ModeCrtc) -> Outcome<i32> {
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        let plane = &self.state.planes[self.crtcs[crtc].primary];
        let on_plane = plane.crtc == Some(crtc);
        let state = &self.state.crtcs[crtc];
        request.gamma_size = self.features.gamma_size;
        request.fb_id = plane.fb.as_ref().filter(|_| on_plane).map_or(0, |fb| fb.hold.object);
        (request.x, request.y) = if on_plane { (plane.src_x >> 16, plane.src_y >> 16) } else { (0, 0) };
        request.mode_valid = u32::from(state.enable);
        if let Some(mode) = &state.mode {
            request.mode = *mode;
            if !self.file(fh)?.caps.aspect_ratio {
                request.mode.flags &= !DRM_MODE_FLAG_PIC_AR_MASK;
            }
        }
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_GETENCODER`.
    pub(crate) fn get_encoder(&self, fh: Fh, request: &mut GetEncoder) -> Outcome<i32> {
        let Object::Encoder(encoder) = self.object(fh, request.encoder_id)? else {
            return Err(Errno::ENOENT.into());
        };
        let spec = &self.topology.encoders[encoder];
        let crtc =
            self.state.connectors.iter().find(|state| state.encoder == Some(encoder)).and_then(|state| state.crtc);
        let crtc = crtc.map(|crtc| self.crtcs[crtc].id).filter(|&id| self.lease_held(fh, id));
        request.crtc_id = crtc.unwrap_or(0);
        request.encoder_type = spec.kind;
        request.possible_crtcs = self.filter_crtcs(fh, spec.possible_crtcs);
        // No card here clones a picture; an encoder goes with itself (`drm_mode_config_validate`).
        request.possible_clones = 1 << encoder;
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_GETPLANERESOURCES`.
    pub(crate) fn get_plane_resources(&self, cx: &Cx<'_>, fh: Fh, res: &mut GetPlaneRes) -> Outcome<i32> {
        let visible = (0..self.planes.len()).filter(|&plane| self.plane_visible(fh, plane));
        let mut planes: Vec<u32> = visible.map(|plane| self.planes[plane].id).collect();
        planes.sort_unstable();
        copy_some(cx, &planes, res.plane_id_ptr, &mut res.count_planes)?;
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_GETPLANE`.
    pub(crate) fn get_plane(&self, cx: &Cx<'_>, fh: Fh, request: &mut GetPlane) -> Outcome<i32> {
        let plane = self.plane_by_id(fh, request.plane_id)?;
        let (state, spec) = (&self.state.planes[plane], &self.topology.planes[plane]);
        let crtc = state.crtc.map(|crtc| self.crtcs[crtc].id).filter(|&id| self.lease_held(fh, id));
        request.crtc_id = crtc.unwrap_or(0);
        request.fb_id = state.fb.as_ref().map_or(0, |fb| fb.hold.object);
        request.possible_crtcs = self.filter_crtcs(fh, spec.possible_crtcs);
        request.gamma_size = 0;
        copy_list(cx, &spec.formats, request.format_type_ptr, &mut request.count_format_types)?;
        Ok(0)
    }

    /// The property of this kind.
    pub(crate) fn property(&self, key: Key) -> Option<&Property> {
        self.properties.iter().find(|property| property.key == key)
    }

    /// The properties that an object has. `ENOENT`/`EINVAL`: it can have none.
    pub(crate) fn keys_of(&self, object: Object) -> Result<&[Key], Errno> {
        match object {
            Object::Crtc(crtc) => Ok(&self.crtcs[crtc].properties),
            Object::Plane(plane) => Ok(&self.planes[plane].properties),
            Object::Connector(connector) => Ok(&self.connectors[connector].properties),
            Object::Encoder(_) | Object::Property(_) => Err(Errno::EINVAL),
        }
    }

    /// An object's properties as the file sees them, with their values.
    pub(crate) fn property_values(&self, fh: Fh, object: Object) -> Result<(Vec<u32>, Vec<u64>), Errno> {
        let atomic = self.file(fh)?.caps.atomic;
        let mut listed = (Vec::new(), Vec::new());
        for &key in self.keys_of(object)? {
            let Some(property) = self.property(key) else { continue };
            if property.atomic && !atomic {
                continue;
            }
            listed.0.push(property.id);
            listed.1.push(self.property_value(object, key));
        }
        Ok(listed)
    }

    /// The value of an object's property now.
    fn property_value(&self, object: Object, key: Key) -> u64 {
        let crtc_id = |crtc: Option<usize>| crtc.map_or(0, |crtc| u64::from(self.crtcs[crtc].id));
        match object {
            Object::Crtc(crtc) => {
                let state = &self.state.crtcs[crtc];
                match key {
                    Key::Active => u64::from(state.active),
                    Key::ModeId => state.mode_blob.as_ref().map_or(0, |blob| u64::from(blob.id)),
                    Key::GammaLut => state.gamma_blob.as_ref().map_or(0, |blob| u64::from(blob.id)),
                    Key::GammaLutSize => u64::from(self.features.gamma_size),
                    Key::VrrEnabled => u64::from(self.crtcs[crtc].vrr_enabled),
                    _ => 0,
                }
            }
            Object::Plane(plane) => {
                let state = &self.state.planes[plane];
                match key {
                    Key::Type => self.topology.planes[plane].kind as u64,
                    Key::FbId => state.fb.as_ref().map_or(0, |fb| u64::from(fb.hold.object)),
                    Key::InFenceFd => u64::MAX,
                    Key::CrtcId => crtc_id(state.crtc),
                    Key::CrtcX => i64::from(state.crtc_x) as u64,
                    Key::CrtcY => i64::from(state.crtc_y) as u64,
                    Key::CrtcW => state.crtc_w.into(),
                    Key::CrtcH => state.crtc_h.into(),
                    Key::SrcX => state.src_x.into(),
                    Key::SrcY => state.src_y.into(),
                    Key::SrcW => state.src_w.into(),
                    Key::SrcH => state.src_h.into(),
                    Key::HotspotX => i64::from(state.hotspot_x) as u64,
                    Key::HotspotY => i64::from(state.hotspot_y) as u64,
                    Key::InFormats => self.planes[plane].in_formats.as_ref().map_or(0, |blob| u64::from(blob.id)),
                    _ => 0,
                }
            }
            Object::Connector(connector) => {
                let state = &self.state.connectors[connector];
                match key {
                    Key::Edid => self.connectors[connector].edid.as_ref().map_or(0, |blob| u64::from(blob.id)),
                    Key::Dpms => self.connectors[connector].dpms,
                    Key::LinkStatus => u64::from(state.link_bad),
                    Key::CrtcId => crtc_id(state.crtc),
                    _ => 0,
                }
            }
            Object::Encoder(_) | Object::Property(_) => 0,
        }
    }

    /// `DRM_IOCTL_MODE_OBJ_GETPROPERTIES`.
    pub(crate) fn object_get_properties(&self, cx: &Cx<'_>, fh: Fh, request: &mut ObjGetProperties) -> Outcome<i32> {
        let object = self.typed_object(fh, request.obj_id, request.obj_type)?;
        let (ids, values) = self.property_values(fh, object)?;
        if request.count_props as usize >= ids.len() {
            cx.write_user(request.props_ptr, ids.as_bytes())?;
            cx.write_user(request.prop_values_ptr, values.as_bytes())?;
        }
        request.count_props = ids.len() as u32;
        Ok(0)
    }

    /// An object of a kind, or of any.
    pub(crate) fn typed_object(&self, fh: Fh, id: u32, kind: u32) -> Result<Object, Errno> {
        let object = match self.object(fh, id) {
            Ok(object) => object,
            // Blobs and framebuffers are objects, but have no properties.
            Err(_) if self.blobs.contains_key(&id) && matches!(kind, DRM_MODE_OBJECT_BLOB | DRM_MODE_OBJECT_ANY) => {
                return Err(Errno::EINVAL);
            }
            Err(_)
                if self.framebuffers.contains_key(&id) && matches!(kind, DRM_MODE_OBJECT_FB | DRM_MODE_OBJECT_ANY) =>
            {
                return Err(Errno::EINVAL);
            }
            Err(errno) => return Err(errno),
        };
        if kind != DRM_MODE_OBJECT_ANY && kind != object.kind() {
            return Err(Errno::ENOENT);
        }
        Ok(object)
    }

    /// `DRM_IOCTL_MODE_GETPROPERTY`.
    pub(crate) fn get_property(&self, cx: &Cx<'_>, request: &mut GetProperty) -> Outcome<i32> {
        let property = match self.objects.get(&request.prop_id) {
            Some(&Object::Property(index)) => &self.properties[index],
            _ => return Err(Errno::ENOENT.into()),
        };
        request.name = name_bytes(property.name);
        request.flags = property.flags();
        copy_list(cx, &property.listed(), request.values_ptr, &mut request.count_values)?;
        request.count_enum_blobs = match property.values {
            Values::Enum(values) => {
                let entries: Vec<PropertyEnum> =
                    values.iter().map(|&(value, name)| PropertyEnum { value, name: name_bytes(name) }).collect();
                copy_list(cx, &entries, request.enum_blob_ptr, &mut request.count_enum_blobs)?;
                entries.len() as u32
            }
            // The number of enumerated blobs, a thing that is no more.
            Values::Blob => 0,
            _ => request.count_enum_blobs,
        };
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_GETPROPBLOB`.
    pub(crate) fn get_blob(&self, cx: &Cx<'_>, request: &mut GetBlob) -> Outcome<i32> {
        let blob = self.blob(request.blob_id)?;
        if request.length as usize == blob.data.len() {
            cx.write_user(request.data, &blob.data)?;
        }
        request.length = blob.data.len() as u32;
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_CREATEPROPBLOB`.
    pub(crate) fn create_blob(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut CreateBlob) -> Outcome<i32> {
        if request.length == 0 || request.length > limits::BLOB_SIZE {
            return Err(Errno::EINVAL.into());
        }
        let file = self.file(fh)?;
        let held: usize = file.blobs.values().map(|blob| blob.data.len()).sum();
        if file.blobs.len() >= limits::BLOBS || held + request.length as usize > limits::BLOB_BYTES {
            return Err(Errno::ENOMEM.into());
        }
        let mut data = vec![0; request.length as usize];
        cx.read_user(request.data, &mut data)?;
        let blob = self.new_blob(data)?;
        request.blob_id = blob.id;
        self.file_mut(fh)?.blobs.insert(blob.id, blob);
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_DESTROYPROPBLOB`: it lives on while a mode object uses it.
    pub(crate) fn destroy_blob(&mut self, fh: Fh, request: &DestroyBlob) -> Outcome<i32> {
        self.blob(request.blob_id)?;
        self.file_mut(fh)?.blobs.remove(&request.blob_id).ok_or(Errno::EPERM)?;
        Ok(0)
    }
}
