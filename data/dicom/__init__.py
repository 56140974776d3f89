"""DICOM files, as a workstation shows them."""
