// Answers a question about an image from a build made for transformers.js; prints token ids and text as JSON.
//
//     node answer.mjs BUILD IMAGE QUESTION MAX_NEW_TOKENS

import path from 'node:path';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from '@huggingface/transformers';

const [build, image, question, maxNewTokens] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(build));
const name = path.basename(path.resolve(build));

const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name, { device: 'cpu' });
const messages = [{ role: 'user', content: [{ type: 'image' }, { type: 'text', text: question }] }];
const text = processor.apply_chat_template(messages, { add_generation_prompt: true });
const inputs = await processor(text, await RawImage.read(image));
const output = await model.generate({
  ...inputs,
  do_sample: false,
  repetition_penalty: 1.0,
  max_new_tokens: Number(maxNewTokens),
});
const prompt = inputs.input_ids.dims[1];
const ids = output.tolist()[0].map(Number);
console.log(
  JSON.stringify({
    prompt_ids: ids.slice(0, prompt),
    answer_ids: ids.slice(prompt),
    text: processor.batch_decode(output.slice(null, [prompt, null]), { skip_special_tokens: true })[0],
  }),
);
