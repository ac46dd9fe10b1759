"""Pool drivers: one contract (`driver`) for every kind of Azure node pool, with equal features."""
