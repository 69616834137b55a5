"""GPTQ: weights rounded column by column, each error made up for by the columns that are left."""
