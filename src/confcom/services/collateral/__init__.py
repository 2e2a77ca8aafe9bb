"""The collateral service: Intel's documents and PCK certificates over PCCS' interface."""
