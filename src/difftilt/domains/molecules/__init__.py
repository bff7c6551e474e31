"""Drug-like molecules, written as SMILES."""
