//! A film of the screen: an animated PNG, each frame the rectangle that changed since the one before.

use super::screen::Frame;
use crate::machine::qmp::Qmp;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at the screen.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long the last frame stays before the film begins again.
const LAST: Duration = Duration::from_secs(4);
/// The longest that a frame stays: where nothing happens, time is cut out.
const LONGEST: Duration = Duration::from_secs(3);

/// A film being taken in a thread of its own.
pub struct Film {
    file: PathBuf,
    cut: Arc<AtomicBool>,
    camera: JoinHandle<Result<Vec<(Frame, Duration)>>>,
}

impl Film {
    /// Begins to film the screen of the machine whose QMP socket is in `folder`.
    pub fn start(folder: &Path, file: PathBuf) -> Film {
        let cut = Arc::new(AtomicBool::new(false));
        let (stop, folder) = (cut.clone(), folder.to_path_buf());
        let camera = std::thread::spawn(move || {
            let mut frames: Vec<(Frame, Duration)> = Vec::new();
            let mut since = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                // The socket takes one at a time, and the case's input needs it as well.
                let frame =
                    Qmp::connect(&folder.join("qmp.sock")).and_then(|mut qmp| Frame::take(&mut qmp, &folder))?;
                if frames.last().is_none_or(|(last, _)| *last != frame) {
                    if let Some((_, stays)) = frames.last_mut() {
                        *stays = since.elapsed().min(LONGEST);
                    }
                    since = Instant::now();
                    frames.push((frame, LAST));
                }
                std::thread::sleep(INTERVAL);
            }
            Ok(frames)
        });
        Film { file, cut, camera }
    }

    /// Ends the film and writes it.
    pub fn cut(self) -> Result<()> {
        self.cut.store(true, Ordering::Relaxed);
        let Ok(frames) = self.camera.join() else { bail!("the camera's thread panicked") };
        let frames = frames?;
        let (first, _) = frames.first().context("the film has no frame")?;
        let (width, height) = (first.width, first.height);
        if frames.iter().any(|(frame, _)| (frame.width, frame.height) != (width, height)) {
            bail!("the screen's size changed during the film");
        }
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let output = fs::File::create(&self.file).with_context(|| format!("cannot write {}", self.file.display()))?;
        let mut encoder = png::Encoder::new(BufWriter::new(output), width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        encoder.set_animated(frames.len() as u32, 0)?;
        let mut writer = encoder.write_header()?;
        let mut before: Option<&Frame> = None;
        for (frame, stays) in &frames {
            let (x, y, w, h) = before.map_or((0, 0, width, height), |before| frame.changed(before));
            writer.set_frame_delay(stays.as_millis().min(u128::from(u16::MAX)) as u16, 1000)?;
            writer.reset_frame_position()?;
            writer.set_frame_dimension(w, h)?;
            writer.set_frame_position(x, y)?;
            writer.write_image_data(&frame.part(x, y, w, h))?;
            before = Some(frame);
        }
        writer.finish()?;
        Ok(())
    }
}
