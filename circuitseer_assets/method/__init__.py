"""The method: tensors and records in, tensors and records out; no service is named here."""
