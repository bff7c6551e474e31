"""Pipelines of a few thousand weights, made from their config classes: no hub, no file."""

import string
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn

WORDS = 120  # tokens of the tokenizer, which reads letter by letter
LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SQUARE: dict[str, Any] = {"height": 32, "width": 32}


def library() -> Any:
    import diffusers  # whose annotations allow no more than its defaults

    return diffusers


def tokenizer(length: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "</s>", "<unk>", *dict.fromkeys(string.printable)]
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(letters)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=length, padding_side="right", **marks
    )


def clip(width: int, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=3, eos_token_id=1, pad_token_id=0, projection_dim=width,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=WORDS, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    )


def gemma(width: int, head: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config: Any = Gemma2Config
    return Gemma2Model(
        config(
            vocab_size=WORDS, hidden_size=width, head_dim=head, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, attn_implementation="eager",
        )
    )  # fmt: skip


def vae(channels: int = 4, **settings: Any) -> Any:
    return library().AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4, **settings,
    )  # fmt: skip


def flow(**settings: Any) -> Any:
    return library().FlowMatchEulerDiscreteScheduler(**settings)


def unet(**settings: Any) -> Any:
    kept: dict[str, Any] = {
        "sample_size": 8, "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return library().UNet2DConditionModel(**kept | settings)


def sd1(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    settings: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    pipe = library().StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(16),
        tokenizer=tokenizer(16),
        unet=unet(block_out_channels=(16, 16), cross_attention_dim=16, attention_head_dim=8),
        scheduler=scheduler or library().DDIMScheduler(**LATENT, **settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"guidance_scale": 5.0}


def sdxl() -> tuple[Any, dict[str, Any]]:
    denoiser = unet(
        block_out_channels=(16, 32), cross_attention_dim=32, attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    pipe = library().StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(16), text_encoder_2=clip(16, True), tokenizer=tokenizer(16),
        tokenizer_2=tokenizer(16), unet=denoiser, scheduler=library().EulerDiscreteScheduler(**LATENT),
    )  # fmt: skip
    return pipe, {"guidance_scale": 5.0, "height": 16, "width": 16}


def sd3() -> tuple[Any, dict[str, Any]]:
    denoiser = library().SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    pipe = library().StableDiffusion3Pipeline(
        transformer=denoiser, scheduler=flow(shift=3.0), vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(16, True), tokenizer=tokenizer(16), text_encoder_2=clip(16, True),
        tokenizer_2=tokenizer(16), text_encoder_3=t5(), tokenizer_3=tokenizer(16),
    )  # fmt: skip
    return pipe, {"guidance_scale": 4.5, "height": 16, "width": 16, "max_sequence_length": 16}


def flux(guidance: bool = True) -> tuple[Any, dict[str, Any]]:
    denoiser = library().FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    )  # fmt: skip
    pipe = library().FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True, shift=3.0), vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(16), tokenizer=tokenizer(16), text_encoder_2=t5(), tokenizer_2=tokenizer(32),
        transformer=denoiser,
    )  # fmt: skip
    return pipe, {"guidance_scale": 3.5, **SQUARE, "max_sequence_length": 16}


def kontext() -> tuple[Any, dict[str, Any]]:
    made, call = flux()
    pipe = library().FluxKontextPipeline(**{k: v for k, v in made.components.items() if v is not None})
    return pipe, {**call, "max_area": 32**2, "_auto_resize": False}


def flux_guided() -> tuple[Any, dict[str, Any]]:
    pipe, call = flux(False)
    return pipe, call | {"negative_prompt": "bad", "true_cfg_scale": 3.0}


def wan(experts: int = 1) -> tuple[Any, dict[str, Any]]:
    def expert() -> Any:
        return library().WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
            out_channels=16, text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )  # fmt: skip

    decoder = library().AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    second = {"transformer_2": expert(), "boundary_ratio": 0.9} if experts == 2 else {}
    pipe = library().WanPipeline(
        tokenizer=tokenizer(16), text_encoder=t5(), vae=decoder, scheduler=flow(shift=5.0),
        transformer=expert(), **second,
    )  # fmt: skip
    call = {"negative_prompt": "bad", "height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}
    return pipe, {"guidance_scale": 4.0, **call}


def wan22() -> tuple[Any, dict[str, Any]]:
    return wan(2)


def ltx() -> tuple[Any, dict[str, Any]]:
    denoiser = library().LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4,
        attention_head_dim=8, cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    scaling, four = (True, True, False, False), (False,) * 4
    decoder = library().AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scaling,
        decoder_spatio_temporal_scaling=scaling, decoder_inject_noise=(False,) * 5, upsample_residual=four,
        upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=1, patch_size_t=1,
    )  # fmt: skip
    pipe = library().LTXPipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=decoder, text_encoder=t5(), tokenizer=tokenizer(16),
        transformer=denoiser,
    )  # fmt: skip
    return pipe, {"guidance_scale": 3.0, **SQUARE, "num_frames": 9, "max_sequence_length": 16}


def cogvideox() -> tuple[Any, dict[str, Any]]:
    denoiser = library().CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    decoder = library().AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = library().CogVideoXDDIMScheduler(
        **LATENT, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
        snr_shift_scale=3.0, set_alpha_to_one=True,
    )  # fmt: skip
    pipe = library().CogVideoXPipeline(
        tokenizer=tokenizer(16), text_encoder=t5(), vae=decoder, transformer=denoiser, scheduler=scheduler
    )
    call = {"height": 16, "width": 16, "num_frames": 8, "max_sequence_length": 16}
    return pipe, {"guidance_scale": 6.0, **call}


def pixart() -> tuple[Any, dict[str, Any]]:
    denoiser = library().PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8, norm_num_groups=1,
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    pipe = library().PixArtSigmaPipeline(
        tokenizer=tokenizer(16), text_encoder=t5(), vae=vae(), transformer=denoiser,
        scheduler=library().DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )  # fmt: skip
    call = {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}
    return pipe, {"guidance_scale": 4.5, **call, "max_sequence_length": 16}


def sana() -> tuple[Any, dict[str, Any]]:
    denoiser = library().SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
        cross_attention_dim=8, caption_channels=8, sample_size=8,
    )  # fmt: skip
    blocks = ("ResBlock", "EfficientViTBlock")
    decoder = library().AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
        decoder_block_types=blocks, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41,
    )  # fmt: skip
    pipe = library().SanaPipeline(
        tokenizer=tokenizer(16), text_encoder=gemma(8, 16), vae=decoder, transformer=denoiser,
        scheduler=flow(shift=3.0),
    )  # fmt: skip
    call = {"use_resolution_binning": False, "complex_human_instruction": None, "clean_caption": False}
    return pipe, {"guidance_scale": 4.5, **SQUARE, **call, "max_sequence_length": 16}


def lumina2() -> tuple[Any, dict[str, Any]]:
    denoiser = library().Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1,
        num_kv_heads=1, multiple_of=16, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )  # fmt: skip
    pipe = library().Lumina2Pipeline(
        transformer=denoiser, scheduler=flow(shift=6.0), vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=gemma(8, 4), tokenizer=tokenizer(16),
    )  # fmt: skip
    return pipe, {"guidance_scale": 4.0, **SQUARE, "max_sequence_length": 16}


def embedding(prompt: str, count: int, width: int) -> torch.Tensor:
    """What a text encoder too large to be made tiny would make of a prompt."""
    seed = sum(ord(letter) * (i + 1) for i, letter in enumerate(prompt))
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def listed(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def qwen() -> tuple[Any, dict[str, Any]]:
    denoiser = library().QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=3, joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    decoder = library().AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * 4, latents_std=[1.2] * 4,
    )  # fmt: skip
    shift = {"shift_terminal": 0.02, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    pipe = library().QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True, **shift), vae=decoder, text_encoder=None, tokenizer=None,
        transformer=denoiser,
    )  # fmt: skip

    def encode_prompt(
        prompt, image=None, device=None, num_images_per_prompt=1, prompt_embeds=None,
        prompt_embeds_mask=None, max_sequence_length=1024,
    ):  # fmt: skip
        rows = [embedding(text, len(text), 16) for text in listed(prompt)]
        masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
        embeds, mask = (nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (rows, masks))
        return embeds, None if mask.bool().all() else mask

    pipe.encode_prompt = encode_prompt
    return pipe, {"true_cfg_scale": 4.0, "negative_prompt": " ", **SQUARE}


def zimage() -> tuple[Any, dict[str, Any]]:
    denoiser = library().ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1,
        n_heads=2, n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0,
        t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    for name in ("x_pad_token", "cap_pad_token"):  # which are not filled
        nn.init.ones_(denoiser.get_parameter(name))
    pipe = library().ZImagePipeline(
        scheduler=flow(shift=3.0), vae=vae(16, shift_factor=0.11, scaling_factor=0.36), text_encoder=None,
        tokenizer=None, transformer=denoiser,
    )  # fmt: skip

    def encode_prompt(
        prompt, device=None, do_classifier_free_guidance=True, negative_prompt=None, prompt_embeds=None,
        negative_prompt_embeds=None, max_sequence_length=512,
    ):  # fmt: skip
        asked = listed(prompt)
        without = listed(negative_prompt) if isinstance(negative_prompt, list) else [""] * len(asked)
        away = [embedding(f"{text}?", len(text) + 1, 16) for text in without]
        rows = [embedding(text, len(text), 16) for text in asked]
        return rows, away if do_classifier_free_guidance else []

    pipe.encode_prompt = encode_prompt
    return pipe, {"guidance_scale": 4.0, **SQUARE}


def without_encoder(pipe: Any) -> Any:
    """A pipeline of Flux.2 that makes its embeddings up."""

    def encode_prompt(
        prompt, device=None, num_images_per_prompt=1, prompt_embeds=None, max_sequence_length=512,
        text_encoder_out_layers=(),
    ):  # fmt: skip
        embeds = torch.stack([embedding(text, 8, 16) for text in listed(prompt)])
        return embeds, pipe._prepare_text_ids(embeds)

    pipe.encode_prompt = encode_prompt
    return pipe


def flux2() -> tuple[Any, dict[str, Any]]:
    denoiser = library().Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    decoder = library().AutoencoderKLFlux2(
        sample_size=32, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=1,
    )  # fmt: skip
    pipe = library().Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=decoder, text_encoder=None, tokenizer=None,
        transformer=denoiser,
    )  # fmt: skip

    return without_encoder(pipe), {"guidance_scale": 4.0, **SQUARE}


def klein() -> tuple[Any, dict[str, Any]]:
    guided, call = flux2()
    denoiser = library().Flux2Transformer2DModel(**{**guided.transformer.config, "guidance_embeds": False})
    pipe = library().Flux2KleinPipeline(
        scheduler=guided.scheduler, vae=guided.vae, text_encoder=None, tokenizer=None, transformer=denoiser
    )
    return without_encoder(pipe), call


def chroma() -> tuple[Any, dict[str, Any]]:
    denoiser = library().ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32,
        approximator_layers=1, approximator_num_channels=16,
    )  # fmt: skip
    pipe = library().ChromaPipeline(
        scheduler=flow(), vae=vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=t5(),
        tokenizer=tokenizer(16), transformer=denoiser,
    )  # fmt: skip
    return pipe, {"guidance_scale": 4.0, **SQUARE, "max_sequence_length": 16, "negative_prompt": "bad"}


def auraflow() -> tuple[Any, dict[str, Any]]:
    from transformers import UMT5Config, UMT5EncoderModel

    denoiser = library().AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
        out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    )
    pipe = library().AuraFlowPipeline(
        tokenizer=tokenizer(16), text_encoder=encoder, vae=vae(), transformer=denoiser,
        scheduler=flow(shift=1.73),
    )  # fmt: skip
    return pipe, {"guidance_scale": 3.5, "height": 16, "width": 16, "max_sequence_length": 16}


def hunyuan() -> tuple[Any, dict[str, Any]]:
    denoiser = library().HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    decoder = library().AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8,) * 4, layers_per_block=1,
        norm_num_groups=4, scaling_factor=0.47, spatial_compression_ratio=8, temporal_compression_ratio=4,
    )  # fmt: skip
    pipe = library().HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, transformer=denoiser, vae=decoder, scheduler=flow(shift=7.0),
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip

    def encode_prompt(
        prompt, prompt_2=None, prompt_template=None, num_videos_per_prompt=1, prompt_embeds=None,
        pooled_prompt_embeds=None, prompt_attention_mask=None, device=None, dtype=None,
        max_sequence_length=256,
    ):  # fmt: skip
        texts = listed(prompt)
        rows, means = (torch.stack([embedding(text, *size) for text in texts]) for size in ((8, 16), (1, 8)))
        return rows, means[:, 0], torch.ones(len(texts), 8)

    pipe.encode_prompt = encode_prompt
    return pipe, {"guidance_scale": 6.0, "height": 16, "width": 16, "num_frames": 5}


def cogview4() -> tuple[Any, dict[str, Any]]:
    denoiser = library().CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4,
        out_channels=4, text_embed_dim=32, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    shift = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "time_shift_type": "linear"}
    pipe = library().CogView4Pipeline(
        tokenizer=None, text_encoder=None, vae=vae(), transformer=denoiser,
        scheduler=flow(use_dynamic_shifting=True, **shift),
    )  # fmt: skip

    def encode_prompt(
        prompt, negative_prompt=None, do_classifier_free_guidance=True, num_images_per_prompt=1,
        prompt_embeds=None, negative_prompt_embeds=None, device=None, dtype=None, max_sequence_length=1024,
    ):  # fmt: skip
        rows = torch.stack([embedding(text, 16, 32) for text in listed(prompt)])
        away = embedding("", 16, 32).expand_as(rows) if do_classifier_free_guidance else None
        return rows, away

    pipe.encode_prompt = encode_prompt
    return pipe, {"guidance_scale": 4.0, "height": 16, "width": 16}


def ddpm() -> tuple[Any, dict[str, Any]]:
    denoiser = library().UNet2DModel(
        sample_size=8, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return library().DDPMPipeline(denoiser, library().DDPMScheduler(clip_sample=True)), {}


def ddim() -> tuple[Any, dict[str, Any]]:
    pipe, call = ddpm()
    return library().DDIMPipeline(pipe.unet, library().DDIMScheduler(clip_sample=True)), call


Family = Callable[[], tuple[Any, dict[str, Any]]]
FAMILIES: dict[str, Family] = {
    f.__name__: f
    for f in (
        *(sd1, sdxl, sd3, flux, kontext, flux_guided, flux2, qwen, zimage, sana, pixart, lumina2),
        *(klein, chroma, auraflow, cogview4, wan, wan22, ltx, cogvideox, hunyuan, ddpm, ddim),
    )
}
WITHOUT_ENCODERS = ("qwen", "zimage", "flux2", "klein", "cogview4", "hunyuan")


def build(name: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Equal pipelines for equal arguments, and the settings of their calls."""
    torch.manual_seed(0)
    pipe, call = FAMILIES[name](**settings)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        for p in part.eval().parameters() if isinstance(part, nn.Module) else ():
            if p.numel() and p.abs().max() == 0:
                nn.init.normal_(p, std=0.05)  # layers that start at zero would hide mistakes
    return pipe, call
