//! The Kiln API types (kiln.build/v1alpha1) and the CRD generator
