//! The only process of a build that holds credentials: registries, journal, permit, report
