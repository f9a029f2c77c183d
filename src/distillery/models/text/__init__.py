"""Networks that read tokens: transformers, a recurrent student, a student's initialisation, and export."""
