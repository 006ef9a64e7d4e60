//! Layout: every byte Petrel keeps in a data directory, as drawn in `docs/on-disk-format.md`.
//!
//! Invariant: all numbers are little-endian, everything names its format version, and what was
//! only partly written, or is not ours, is told apart from what is whole. Pure: no I/O.

use smt::store::ReplicaMeta;
use smt::wire::checksum::small_sum;
use smt::{Epoch, Geometry, Incarnation, SegmentId, ServerId};

/// The format this program writes, and the only one it reads.
/// * 1: the first; never in a release.
/// * 2: the writer token in an adopted config, and commands of attachments in the map's log.
pub const FORMAT_VERSION: u32 = 2;

/// A page of the machine, and a slot or header of ours.
pub const PAGE_BYTES: usize = 4096;
/// Where the check of a page is: its last eight bytes.
const CHECK_AT: usize = PAGE_BYTES - 8;

const STORE_MAGIC: [u8; 8] = *b"PETRLSTO";
const META_MAGIC: [u8; 8] = *b"PETRLSEG";
const TABLE_MAGIC: [u8; 8] = *b"PETRLTAB";

/// Where the intent map begins in the `.meta` file: behind two slots.
pub const INTENT_AT: usize = 2 * PAGE_BYTES;
/// Where the entries begin in the `.table` file: behind its header.
pub const ENTRIES_AT: usize = PAGE_BYTES;

/// Blocks of the largest segment: 1 GiB.
pub const SEGMENT_BLOCKS_MAX: u32 = 1 << 18;

/// The last epoch in which `server` held a member's replica, once `meta` is its header.
pub(super) fn member_epoch(server: ServerId, meta: &ReplicaMeta, before: Epoch) -> Epoch {
    let is_member = meta.config.is_member(server) && meta.joining.is_none();
    if is_member { meta.config.epoch } else { before }
}

/// Why a page is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageError {
    /// Partly written, never written, or decayed.
    Damaged(&'static str),
    Newer(u32),
    Older(u32),
}

fn sealed(magic: [u8; 8], fill: impl FnOnce(&mut [u8])) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&magic);
    page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    fill(&mut page[..CHECK_AT]);
    let check = small_sum(&page[..CHECK_AT]);
    page[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    page
}

fn unsealed(magic: [u8; 8], page: &[u8]) -> Result<&[u8], PageError> {
    let Some((page, _)) = page.split_at_checked(PAGE_BYTES) else {
        return Err(PageError::Damaged("it is too short"));
    };
    if page[..8] != magic {
        return Err(PageError::Damaged("it does not begin as it should"));
    }
    // Before the check: another format may have its check elsewhere. No half-written page of
    // ours names another version.
    let version = u32_at(page, 8);
    if version > FORMAT_VERSION {
        // Whole, were it of our version: then that number decayed, and nothing else.
        let mut ours = page.to_vec();
        ours[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        if small_sum(&ours[..CHECK_AT]) == u64_at(page, CHECK_AT) {
            return Err(PageError::Damaged("its version does not match its checksum"));
        }
        return Err(PageError::Newer(version));
    }
    if small_sum(&page[..CHECK_AT]) != u64_at(page, CHECK_AT) {
        return Err(PageError::Damaged("it does not match its checksum"));
    }
    // Behind the check, because a page that decayed may name any number.
    if version < FORMAT_VERSION {
        return Err(PageError::Older(version));
    }
    Ok(&page[..CHECK_AT])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

/// Whose data directory this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub server: ServerId,
    /// Names this directory, for ever.
    pub store: u128,
    /// Of the process that has it open.
    pub incarnation: Incarnation,
    /// 0 until the server has joined one.
    pub cluster: u64,
}

impl Identity {
    pub(super) fn encode(&self) -> [u8; PAGE_BYTES] {
        let Identity { server, store, incarnation, cluster } = self;
        sealed(STORE_MAGIC, |page| {
            page[16..24].copy_from_slice(&server.0.to_le_bytes());
            page[24..40].copy_from_slice(&store.to_le_bytes());
            page[40..48].copy_from_slice(&incarnation.0.to_le_bytes());
            page[48..56].copy_from_slice(&cluster.to_le_bytes());
        })
    }

    pub(super) fn decode(page: &[u8]) -> Result<Identity, PageError> {
        let page = unsealed(STORE_MAGIC, page)?;
        Ok(Identity {
            server: ServerId(u64_at(page, 16)),
            store: u128_at(page, 24),
            incarnation: Incarnation(u64_at(page, 40)),
            cluster: u64_at(page, 48),
        })
    }
}

/// One of the two slots of a `.meta` file; the valid one with the higher number counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaSlot {
    /// Grows with every header written to the file.
    pub number: u64,
    pub store: u128,
    pub cluster: u64,
    /// The last epoch in which the replica was a member's; 0 when that is not known.
    pub member: Epoch,
    pub meta: ReplicaMeta,
}

/// Where the `postcard` bytes of the meta begin in a slot.
const META_AT: usize = 96;

impl MetaSlot {
    /// None when the meta does not fit the slot.
    pub(super) fn encode(&self) -> Option<[u8; PAGE_BYTES]> {
        let MetaSlot { number, store, cluster, member, meta } = self;
        let config = &meta.config;
        let encoded = postcard::to_stdvec(meta).ok()?;
        if encoded.len() > CHECK_AT - META_AT {
            return None;
        }
        let encoded_bytes = u32::try_from(encoded.len()).ok()?;
        Some(sealed(META_MAGIC, |page| {
            page[12..16].copy_from_slice(&encoded_bytes.to_le_bytes());
            page[16..24].copy_from_slice(&number.to_le_bytes());
            page[24..40].copy_from_slice(&store.to_le_bytes());
            page[40..48].copy_from_slice(&cluster.to_le_bytes());
            page[48..56].copy_from_slice(&config.segment.0.to_le_bytes());
            page[56..64].copy_from_slice(&config.volume.0.to_le_bytes());
            page[64..72].copy_from_slice(&config.epoch.0.to_le_bytes());
            page[72..76].copy_from_slice(&config.index.to_le_bytes());
            page[76..80].copy_from_slice(&config.geometry.segment_blocks.to_le_bytes());
            page[80..84].copy_from_slice(&config.geometry.chunk_blocks.to_le_bytes());
            page[84..88].copy_from_slice(&config.geometry.region_blocks.to_le_bytes());
            page[88..96].copy_from_slice(&member.0.to_le_bytes());
            page[META_AT..META_AT + encoded.len()].copy_from_slice(&encoded);
        }))
    }

    pub(super) fn decode(page: &[u8]) -> Result<MetaSlot, PageError> {
        let page = unsealed(META_MAGIC, page)?;
        let encoded = usize::try_from(u32_at(page, 12))
            .ok()
            .and_then(|bytes| page.get(META_AT..META_AT.checked_add(bytes)?))
            .ok_or(PageError::Damaged("its fields reach beyond it"))?;
        let meta: ReplicaMeta = postcard::from_bytes(encoded)
            .map_err(|_| PageError::Damaged("its fields cannot be read"))?;
        if !is_sound(&meta.config.geometry) {
            return Err(PageError::Damaged("its geometry is none of ours"));
        }
        Ok(MetaSlot {
            number: u64_at(page, 16),
            store: u128_at(page, 24),
            cluster: u64_at(page, 40),
            member: Epoch(u64_at(page, 88)),
            meta,
        })
    }
}

fn is_sound(geometry: &Geometry) -> bool {
    let Geometry { segment_blocks, chunk_blocks, region_blocks } = *geometry;
    (1..=SEGMENT_BLOCKS_MAX).contains(&segment_blocks) && chunk_blocks > 0 && region_blocks > 0
}

/// The header of a `.table` file.
pub(super) fn encode_table_header(store: u128, segment: SegmentId) -> [u8; PAGE_BYTES] {
    sealed(TABLE_MAGIC, |page| {
        page[16..24].copy_from_slice(&segment.0.to_le_bytes());
        page[24..40].copy_from_slice(&store.to_le_bytes());
    })
}

/// The store and segment a `.table` file is of.
pub(super) fn decode_table_header(page: &[u8]) -> Result<(u128, SegmentId), PageError> {
    let page = unsealed(TABLE_MAGIC, page)?;
    Ok((u128_at(page, 24), SegmentId(u64_at(page, 16))))
}

/// A number that looks random, and is the same for the same question.
fn scrambled(salt: u64, segment: SegmentId, place: u32) -> u64 {
    // The finaliser of splitmix64, over inputs that differ.
    let mut x = (segment.0 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = x.wrapping_add(u64::from(place).wrapping_mul(0xBF58_476D_1CE4_E5B9));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    // Never 0: that is what a page that was lost reads as.
    if x == 0 { 1 } else { x }
}

/// What a table file holds for an entry is the entry XOR this. So a zero entry, the only one that
/// is believed without data, is a number of its own for each block, and a page that was lost,
/// zeroed or put in the wrong place reads as mismatches, not as zeroes.
pub(super) fn entry_mask(segment: SegmentId, block: u32) -> u64 {
    scrambled(0x7461_626C_6500_0001, segment, block)
}

/// What the intent map holds for a region that is clear. Anything else is set: a page that was
/// lost or torn puts regions in doubt, never out of it.
pub(super) fn intent_clear(segment: SegmentId, region: u32) -> u64 {
    scrambled(0x696E_7465_6E74_0001, segment, region)
}

/// What it holds for one that is set.
pub(super) fn intent_set(segment: SegmentId, region: u32) -> u64 {
    !intent_clear(segment, region)
}

/// Size of the `.meta` file, in bytes.
pub(super) fn meta_file_bytes(geometry: &Geometry) -> usize {
    (INTENT_AT + 8 * index(geometry.regions())).next_multiple_of(PAGE_BYTES)
}

/// Size of the `.table` file, in bytes.
pub(super) fn table_file_bytes(geometry: &Geometry) -> usize {
    (ENTRIES_AT + 8 * index(geometry.segment_blocks)).next_multiple_of(PAGE_BYTES)
}

/// Size of the `.data` file, in bytes.
pub(super) fn data_file_bytes(geometry: &Geometry) -> u64 {
    u64::from(geometry.segment_blocks) * smt::ids::BLOCK_BYTES
}

pub(super) fn index(n: u32) -> usize {
    usize::try_from(n).expect("a u32 fits a usize here")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use smt::VolumeId;
    use smt::map::{Member, SegmentConfig};

    use super::*;

    const IDENTITY: Identity = Identity {
        server: ServerId(3),
        store: 0x0123_4567_89AB_CDEF,
        incarnation: Incarnation(9),
        cluster: 77,
    };

    #[test]
    fn an_identity_reads_back_and_any_flipped_bit_shows() {
        let page = IDENTITY.encode();
        assert_eq!(Identity::decode(&page), Ok(IDENTITY));
        for at in [0, 7, 13, 16, 24, 40, 55, 56, 4000, CHECK_AT, PAGE_BYTES - 1] {
            let mut bad = page;
            bad[at] ^= 0x10;
            assert!(Identity::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Identity::decode(&page[..100]).is_err());
        assert!(Identity::decode(&[0; PAGE_BYTES]).is_err());
    }

    #[test]
    fn a_newer_page_is_told_apart_from_a_damaged_one() {
        let mut page = IDENTITY.encode();
        page[8] = 3;
        page[300] = 1;
        assert_eq!(Identity::decode(&page), Err(PageError::Newer(3)));
        assert!(matches!(MetaSlot::decode(&page), Err(PageError::Damaged(_))));
    }

    /// Else one bit would keep a whole server from starting.
    #[test]
    fn a_version_that_decayed_is_not_taken_for_a_newer_one() {
        for bit in 0..32 {
            let mut page = encode_table_header(7, SegmentId(1));
            page[8 + bit / 8] ^= 1 << (bit % 8);
            let decoded = decode_table_header(&page);
            assert!(matches!(decoded, Err(PageError::Damaged(_))), "bit {bit}: {decoded:?}");
        }
    }

    #[test]
    fn an_older_page_is_told_apart_from_a_damaged_one() {
        let mut page = IDENTITY.encode();
        page[8] = 1;
        assert!(matches!(Identity::decode(&page), Err(PageError::Damaged(_))));
        let check = small_sum(&page[..CHECK_AT]);
        page[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        assert_eq!(Identity::decode(&page), Err(PageError::Older(1)));
    }

    fn slot(members: usize) -> MetaSlot {
        let member = Member { server: ServerId(u64::MAX), incarnation: Incarnation(u64::MAX) };
        MetaSlot {
            number: 5,
            store: 1 << 100,
            cluster: 77,
            member: Epoch(4),
            meta: ReplicaMeta {
                config: SegmentConfig {
                    segment: SegmentId(12),
                    volume: VolumeId(2),
                    index: 3,
                    epoch: Epoch(4),
                    primary: ServerId(1),
                    members: vec![member; members],
                    joining: None,
                    transfer: None,
                    replicas: 2,
                    active: Epoch(3),
                    geometry: Geometry::of_segment(1 << 30).expect("1 GiB"),
                    writer: 7,
                },
                joining: None,
            },
        }
    }

    #[test]
    fn a_header_remembers_when_it_was_last_a_members() {
        let mut meta = slot(1).meta;
        let server = ServerId(u64::MAX);
        assert_eq!(member_epoch(server, &meta, Epoch(1)), Epoch(4));
        meta.joining = Some(smt::MigrationId(9));
        assert_eq!(member_epoch(server, &meta, Epoch(1)), Epoch(1), "a joiner is none");
        meta.joining = None;
        assert_eq!(member_epoch(ServerId(5), &meta, Epoch(1)), Epoch(1), "nor an ex-member");
    }

    #[test]
    fn a_slot_reads_back_and_holds_more_members_than_a_segment_has() {
        let few = slot(16);
        let page = few.encode().expect("16 members fit");
        assert_eq!(MetaSlot::decode(&page), Ok(few));
        let mut torn = page;
        torn[512..].fill(0);
        assert!(matches!(MetaSlot::decode(&torn), Err(PageError::Damaged(_))));
        assert_eq!(slot(1000).encode(), None);
    }

    /// The format is a promise: these bytes may change only with the version.
    #[test]
    fn masks_are_what_they_were_in_the_first_release() {
        let masks = [
            entry_mask(SegmentId(1), 0),
            entry_mask(SegmentId(1), 1),
            intent_clear(SegmentId(1), 0),
        ];
        assert_eq!(masks, MASKS_OF_FORMAT_1);
        let all: BTreeSet<u64> = (0..1000)
            .flat_map(|i| {
                let segment = SegmentId(u64::from(i % 10));
                [entry_mask(segment, i), intent_clear(segment, i), intent_set(segment, i)]
            })
            .collect();
        assert_eq!(all.len(), 3000);
    }

    const MASKS_OF_FORMAT_1: [u64; 3] =
        [0x1552_315F_ABD6_930D, 0x0923_6373_CC36_2D5E, 0xA592_281E_5941_BEC6];
}
