"""Reward fine-tuning of diffusion models: maximise E[r(x_0)] - alpha KL(p || p_pre)."""
