"""What people read: published numbers, figures, tables, claims and verdicts, explorers, notebooks, pages."""
