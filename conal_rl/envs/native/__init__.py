"""The fast Meta-World engine: metaworld 3.1.1's numbers at the speed of MuJoCo 3.3.0."""
