//! The volume, as the core's lanes want it.

use super::actions::FileActions;
use crate::volume::Volume;
use ice_core::action::Io;

impl FileActions for Volume {
    fn submit(&self, io: Io) {
        if let Err(other) = Volume::submit(self, io) {
            tracing::error!("not an action of the volume: {other:?}");
        }
    }
}
