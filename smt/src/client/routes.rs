//! Routes: where the segments of a volume are served, as far as the client knows.
//!
//! Invariant: the version never goes back, and neither does the epoch of any segment (C2).

use crate::ids::*;
use crate::map::{SegmentConfig, VOLUME_SEGMENTS_MAX};

/// What a client needs to know of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub segment: SegmentId,
    pub epoch: Epoch,
    pub primary: ServerId,
}

/// A place in the volume.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// None until the map told.
    route: Option<Route>,
    /// Writes completed. Starts at 1: what others wrote before us is not known to be flushed.
    written: u64,
    /// The value of `written` that the last completed flush covers.
    flushed: u64,
}

const UNKNOWN: Place = Place { route: None, written: 1, flushed: 0 };

#[derive(Debug)]
pub(super) struct Routes {
    volume: VolumeId,
    pub(super) version: MapVersion,
    pub(super) size_blocks: u64,
    pub(super) segment_blocks: u32,
    places: Vec<Place>,
}

impl Routes {
    /// None if there is no such volume: without blocks in its segments, or with more segments than
    /// any volume has.
    pub(super) fn new(
        volume: VolumeId,
        version: MapVersion,
        size_blocks: u64,
        segment_blocks: u32,
    ) -> Option<Routes> {
        let mut routes =
            Routes { volume, version, size_blocks: 0, segment_blocks, places: Vec::new() };
        routes.resize(size_blocks).then_some(routes)
    }

    /// Whether the volume can be of this size. It does not shrink: what lies behind the new end is
    /// kept, and simply not reached.
    pub(super) fn resize(&mut self, size_blocks: u64) -> bool {
        if self.segment_blocks == 0 {
            return false;
        }
        let count = size_blocks.div_ceil(u64::from(self.segment_blocks));
        match usize::try_from(count) {
            Ok(places) if count <= VOLUME_SEGMENTS_MAX => {
                self.size_blocks = size_blocks;
                if places > self.places.len() {
                    self.places.resize(places, UNKNOWN);
                }
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Takes a config if it is of this volume and newer than what is known. Whether it was.
    pub(super) fn take(&mut self, config: &SegmentConfig) -> bool {
        if config.volume != self.volume {
            return false;
        }
        let Some(place) = usize::try_from(config.index).ok().and_then(|i| self.places.get_mut(i))
        else {
            return false;
        };
        let newer = place
            .route
            .is_none_or(|known| known.segment == config.segment && known.epoch < config.epoch);
        if newer {
            place.route = Some(Route {
                segment: config.segment,
                epoch: config.epoch,
                primary: config.primary,
            });
        }
        newer
    }

    pub(super) fn get(&self, index: u32) -> Option<Route> {
        self.place(index).and_then(|place| place.route)
    }

    /// Segments of the volume.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.places.len()).expect("a volume has at most 2^20 segments")
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Route> {
        self.places.iter().filter_map(|place| place.route)
    }

    /// The segment of a block of the volume, the block's place in it, and how many blocks from
    /// there on, `count` at most, are in the same segment. The block is inside the volume.
    pub(super) fn locate(&self, block: u64, count: u64) -> (u32, BlockRange) {
        let per_segment = u64::from(self.segment_blocks);
        let first = block % per_segment;
        let count = count.min(per_segment - first);
        (
            u32::try_from(block / per_segment).expect("a volume has at most 2^20 segments"),
            BlockRange::new(
                u32::try_from(first).expect("below the blocks of a segment"),
                u32::try_from(count).expect("at most the blocks of a segment"),
            ),
        )
    }

    /// The segments that a flush has to reach.
    pub(super) fn dirty(&self) -> Vec<u32> {
        (0..).zip(&self.places).filter(|(_, p)| p.written > p.flushed).map(|(i, _)| i).collect()
    }

    /// A write of the segment was completed.
    pub(super) fn wrote(&mut self, index: u32) {
        if let Some(place) = self.place_mut(index) {
            place.written += 1;
        }
    }

    /// What a flush that is sent now will cover.
    pub(super) fn mark(&self, index: u32) -> u64 {
        self.place(index).map_or(0, |place| place.written)
    }

    /// A flush sent at `mark` was completed.
    pub(super) fn flushed(&mut self, index: u32, mark: u64) {
        if let Some(place) = self.place_mut(index) {
            place.flushed = place.flushed.max(mark);
        }
    }

    fn place(&self, index: u32) -> Option<&Place> {
        usize::try_from(index).ok().and_then(|i| self.places.get(i))
    }

    fn place_mut(&mut self, index: u32) -> Option<&mut Place> {
        usize::try_from(index).ok().and_then(|i| self.places.get_mut(i))
    }
}
