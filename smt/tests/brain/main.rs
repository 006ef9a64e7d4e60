//! The brain of one server, told a story event by event.
//!
//! The simulator tells it thousands under seeds; a story here is one that a seed told once and may
//! not tell again when the random stream shifts, or that its shortened times keep it from telling.

mod fence;
mod hands;
mod joiner;
mod lease;
mod migration;
mod rot;
